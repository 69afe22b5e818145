"""Data-parallel replicas of a dense model behind one server share a linear by pull. Slow: a server with two engines."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import TinyLlama
from swtrace.trace.directory import ring_paths
from swtrace.trace.ring_reader import RingReader
from tests.support.vllm.engines import TOKENS, Answers, engines
from tests.support.vllm.replicas import Replicas, Served, serve
from tests.support.vllm.shared_runs import Samples, by_rank, warnings, watch

SERIES = "mlp.down_proj"
MODEL = TinyLlama(layers=7, hidden=128)
ALONE = 15
"""Prompts that one replica answers while the other is idle."""
TOGETHER = 15
"""Prompts that both replicas answer in turn, at the same time."""

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Dense:
    """The answers and records of the replicas."""

    control: set[Answers]
    answers: Answers
    served: Served
    samples: Samples
    rings: Path


def _prompts() -> list[list[int]]:
    chance = random.Random(30)  # noqa: S311 (nothing secret)
    return [[chance.randrange(MODEL.vocabulary) for _ in range(chance.randint(1, 12))] for _ in range(ALONE + TOGETHER)]


def _talk(replicas: Replicas) -> Answers:
    prompts = _prompts()
    alone = [replicas.ask(0, prompt, TOKENS) for prompt in prompts[:ALONE]]

    def half(replica: int) -> list[tuple[int, ...]]:
        return [replicas.ask(replica, prompt, TOKENS) for prompt in prompts[ALONE + replica :: 2]]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(half, (0, 1))
    together = [answer for pair in zip(first, [*second, ()], strict=True) for answer in pair if answer]
    return (*alone, *together)


@pytest.fixture(scope="module")
def dense(folder: Path) -> Dense:
    """Ask a server of two replicas: first only one of them, then both."""
    here = folder / "dense"
    MODEL.save(here / "model")
    with engines(here / "control") as started:
        control = started.start(here / "model", {}, (SERIES,), _prompts()).stop()
    (answers, served), samples = watch(
        here / "served",
        TOGETHER // 2 * TOKENS,
        lambda environment: serve(here / "model", here / "served", environment, _talk),
        SWTRACE_SERIES=SERIES,
    )
    return Dense(control, answers, served, samples, here / "served" / "rings")


def test_replicas_answer_as_an_engine_without_swtrace(dense: Dense) -> None:
    """Each prompt gets the tokens of an engine without swtrace, whether the other replica is idle or not."""
    assert {dense.answers} == dense.control


def test_replicas_share_by_pull(dense: Dense) -> None:
    """They hold the linear of every layer once, and are ranks 0 and 1 of one run."""
    infos = {
        (labels["rank"], labels["series"], labels["transport"]) for labels, _ in dense.samples["swtrace_series_info"]
    }
    assert infos == {("0", SERIES, "pull"), ("1", SERIES, "pull")}
    owned = by_rank(dense.samples, "swtrace_series_bytes", kind="owned")
    assert sum(owned.values()) == MODEL.layers * MODEL.hidden * 2 * MODEL.hidden * 2
    runs = set()
    for path in ring_paths(dense.rings):
        with RingReader.open(path) as ring:
            runs.add(ring.identity.run_id)
    assert len(runs) == 1
    assert warnings(dense.served.log) == []


def test_replicas_take_steps_of_their_own(dense: Dense) -> None:
    """The replica that answered more prompts took more steps, and neither waited for the other's steps."""
    steps = by_rank(dense.samples, "swtrace_steps_total")
    assert steps[0] >= (ALONE + TOGETHER - TOGETHER // 2) * TOKENS
    assert TOGETHER // 2 * TOKENS <= steps[1] < steps[0] - (ALONE - 1) * TOKENS
    waits = by_rank(dense.samples, "swtrace_waits_total")
    assert waits == {rank: MODEL.layers * count for rank, count in steps.items()}


def test_nothing_is_left(dense: Dense) -> None:
    """After Ctrl-C no process is left."""
    assert (dense.served.status, dense.served.orphans) == (0, [])
