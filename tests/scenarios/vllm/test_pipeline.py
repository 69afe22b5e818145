"""Pipeline parallelism with an uneven split: each stage shares its own layers over its own tensor parallel group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Kind, TransferFlag
from tests.support.vllm.pipeline import (
    PARTITION,
    PREFETCH_STEP,
    SERIES,
    TOKENS,
    StageResult,
    generate,
    unique_rendezvous,
)
from tests.support.vllm.shared_runs import Samples, by_rank, watch
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]

RANKS = 4
STAGES = {0: range(5), 1: range(5), 2: range(5, 9), 3: range(5, 9)}
"""The layers of each rank."""
MODEL = TinyDeepSeek(layers=sum(PARTITION))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Both runs."""

    control: tuple[StageResult, ...]
    ranks: tuple[StageResult, ...]
    samples: Samples
    rings: Path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    """Return four ranks' runs with and without sharing."""
    here = folder / "pipeline"
    MODEL.save(here / "model")
    control = _run(here, {}, shared=False)
    ranks, samples = watch(
        here,
        TOKENS,
        partial(_run, here, shared=True),
        RANKS,
        SWTRACE_SERIES=SERIES,
        SWTRACE_PREFETCH_STEP=str(PREFETCH_STEP),
    )
    return Pipeline(control, ranks, samples, here / "rings")


def _run(here: Path, environment: dict[str, str], *, shared: bool) -> tuple[StageResult, ...]:
    with unique_rendezvous(here) as rendezvous:
        return fork_ranks(
            partial(generate, shared=shared),
            (here / "model", rendezvous),
            here,
            ranks=RANKS,
            environment=environment,
        )


def test_tokens_are_identical(pipeline: Pipeline) -> None:
    """Every rank of both stages generates the tokens that it generates without sharing."""
    assert [rank.tokens for rank in pipeline.ranks] == [rank.tokens for rank in pipeline.control]
    assert all(len(tokens) == TOKENS for tokens in pipeline.ranks[0].tokens)


def test_each_stage_has_its_own_series(pipeline: Pipeline) -> None:
    """A stage's series begins at the stage's first layer, has all its layers, and is shared by the stage's ranks."""
    for rank, result in enumerate(pipeline.ranks):
        layers = STAGES[rank]
        assert result.layers == tuple(layers)
        (info,) = result.infos
        assert (info.start_layer, info.num_layers) == (layers.start, len(layers))
        assert info.group_ranks == ((0, 1) if rank < 2 else (2, 3))
        assert result.outcome == {SERIES: "tp"}


def test_prefetch_is_as_far_ahead_as_asked(pipeline: Pipeline) -> None:
    """On every stage each broadcast starts k layers before its layer, whatever the stage's first layer."""
    assert by_rank(pipeline.samples, "swtrace_prefetch_step", kind="effective") == dict.fromkeys(STAGES, PREFETCH_STEP)
    distances = {}
    for path in pipeline.rings.iterdir():
        with RingReader.open(path) as ring:
            rank, records = ring.identity.rank, ring.read()
        layers = len(STAGES[rank])
        issued = records[(records["kind"] == Kind.TRANSFER) & (records["flags"] & TransferFlag.PREFILLED == 0)]
        distances[rank] = {*((issued["position"] + layers - issued["reach_position"]) % layers)}
    assert distances == {rank: {PREFETCH_STEP} for rank in STAGES}


def test_stages_run_the_same_steps(pipeline: Pipeline) -> None:
    """All four ranks take the same steps, wait for each of their layers in each, and lose no record."""
    steps = by_rank(pipeline.samples, "swtrace_steps_total")
    assert len(set(steps.values())) == 1
    assert steps[0] >= TOKENS
    waits = by_rank(pipeline.samples, "swtrace_waits_total")
    assert waits == {rank: steps[rank] * len(layers) for rank, layers in STAGES.items()}
    assert sum(by_rank(pipeline.samples, "swtrace_ring_lost_records_total").values()) == 0
