"""Data-parallel ranks of a mixture of experts share the linears of attention, which each of them holds whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.mixture import SERIES, TOKENS, MixtureResult, generate
from tests.support.vllm.shared_runs import Samples, by_rank, watch
from tests.support.vllm.tiny_models import TinyMixtral

pytestmark = pytest.mark.vllm

MODEL = TinyMixtral()
STEPS = 2 * max(TOKENS)
"""Two generations, as long as the busier rank takes: one prefill and a decode for every further token."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Both runs."""

    control: tuple[MixtureResult, ...]
    ranks: tuple[MixtureResult, ...]
    samples: Samples


@pytest.fixture(scope="module")
def mixture(folder: Path) -> Mixture:
    """Return two ranks' runs with and without sharing."""
    here = folder / "mixture"
    MODEL.save(here / "model")
    control = fork_ranks(_Generate(shared=False), (here / "model", here / "meet"), here, ranks=2)
    ranks, samples = watch(
        here,
        STEPS,
        lambda environment: fork_ranks(
            _Generate(shared=True), (here / "model", here / "meet-shared"), here, ranks=2, environment=environment
        ),
        SWTRACE_SERIES=",".join(SERIES),
    )
    return Mixture(control, ranks, samples)


@dataclass(frozen=True, slots=True)
class _Generate:
    """The function that a rank runs; a class, because it has to be pickled."""

    shared: bool

    def __call__(self, model: Path, rendezvous: Path) -> MixtureResult:
        return generate(model, rendezvous, shared=self.shared)


def test_tokens_are_identical(mixture: Mixture) -> None:
    """Each rank generates the tokens that it generates without sharing, from its own prompts."""
    assert [rank.tokens for rank in mixture.ranks] == [rank.tokens for rank in mixture.control]
    assert {len(tokens) for tokens in mixture.ranks[1].tokens} == {TOKENS[1]}


def test_both_linears_are_shared_over_data_parallel(mixture: Mixture) -> None:
    """``auto`` takes the data-parallel group for both linears, and each is a series of its own."""
    for number, rank in enumerate(mixture.ranks):
        assert rank.outcome == dict.fromkeys(SERIES, "dp")
        assert [info.name for info in rank.infos] == list(SERIES)
        assert {info.group_ranks for info in rank.infos} == {(0, 1)}
        assert {info.rank_in_group for info in rank.infos} == {number}


@pytest.mark.parametrize("series", SERIES)
def test_ranks_stay_in_lockstep(mixture: Mixture, series: str) -> None:
    """The rank with less to do takes as many steps as the other; without requests these are dummy steps."""
    steps = by_rank(mixture.samples, "swtrace_steps_total", series=series)
    assert steps[0] == steps[1] >= STEPS
    dummies = by_rank(mixture.samples, "swtrace_step_duration_seconds_count", series=series, phase="dummy")
    assert dummies[1] - dummies.get(0, 0) == 2 * (TOKENS[0] - TOKENS[1])


@pytest.mark.parametrize("series", SERIES)
def test_every_layer_is_waited_for_in_every_step(mixture: Mixture, series: str) -> None:
    """Dummy steps also wait for all layers."""
    steps = by_rank(mixture.samples, "swtrace_steps_total", series=series)
    waits = by_rank(mixture.samples, "swtrace_waits_total", series=series)
    assert waits == {rank: count * MODEL.layers for rank, count in steps.items()}
    assert by_rank(mixture.samples, "swtrace_prefetch_step", kind="effective", series=series) == {0: 1, 1: 1}
