"""The server of a mixture of experts on two data-parallel engines, which share the linears of attention.

Slow: each of the two servers is six processes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.vllm.mixture import SERIES
from tests.support.vllm.replicas import Replicas, Served, serve
from tests.support.vllm.server import PROMPTS, TOKENS
from tests.support.vllm.shared_runs import Samples, by_rank, watch
from tests.support.vllm.tiny_models import TinyMixtral

MODEL = TinyMixtral()
EXPERTS = {"TEST_EXPERTS": "1"}
"""Makes the test's plugin add what vLLM's CPU build lacks; see ``cpu_gaps``."""
LONG = 4 * TOKENS

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Answers:
    """By replica."""

    alone: dict[int, list[tuple[int, ...]]]
    """Answers to one request at a time, while the other replica is idle."""
    unequal: dict[int, list[tuple[int, ...]]]
    """Answers to requests at the same time: the first replica has three, one of them long, the second a short one."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A server without sharing, and one with."""

    control: tuple[Answers, Served]
    shared: tuple[Answers, Served]
    samples: Samples


def _talk(replicas: Replicas) -> Answers:
    alone = {replica: [replicas.ask(replica, prompt) for prompt in PROMPTS] for replica in (0, 1)}
    requests = [(0, PROMPTS[0], LONG), (0, PROMPTS[1], TOKENS), (0, PROMPTS[2], TOKENS), (1, PROMPTS[3], TOKENS)]
    with ThreadPoolExecutor(len(requests)) as pool:
        *first, second = pool.map(lambda request: replicas.ask(*request), requests)
    return Answers(alone, {0: first, 1: [second]})


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    """Return both servers' answers."""
    here = folder / "mixture-server"
    MODEL.save(here / "model")
    control = serve(here / "model", here / "control", EXPERTS, _talk, plain_linears=",".join(SERIES))
    shared, samples = watch(
        here / "shared",
        2 * len(PROMPTS) * TOKENS + LONG,
        lambda environment: serve(here / "model", here / "shared", {**environment, **EXPERTS}, _talk),
        SWTRACE_SERIES=",".join(SERIES),
        SWTRACE_TIME_EVERY="1",  # dummy steps are counted by their durations
    )
    return Pair(control, shared, samples)


def test_answers_are_equal(pair: Pair) -> None:
    """Whichever replica is asked, it answers as it does without sharing, while the other is idle."""
    shared, _ = pair.shared
    control, _ = pair.control
    assert shared.alone == control.alone
    assert shared.alone[0] == shared.alone[1]
    assert {len(tokens) for tokens in shared.alone[0]} == {TOKENS}


def test_unequal_loads_are_answered(pair: Pair) -> None:
    """Both replicas answer at the same time, one much longer than the other."""
    answers, _ = pair.shared
    assert [len(tokens) for tokens in answers.unequal[0]] == [LONG, TOKENS, TOKENS]
    assert [len(tokens) for tokens in answers.unequal[1]] == [TOKENS]


def test_both_linears_are_shared_over_data_parallel(pair: Pair) -> None:
    """The engines' workers are ranks 0 and 1 of each series, and the log says why they may share."""
    infos = [labels for labels, _ in pair.samples["swtrace_series_info"]]
    assert {(info["series"], info["rank"], info["group_size"]) for info in infos} == {
        (series, rank, "2") for series in SERIES for rank in ("0", "1")
    }
    _, served = pair.shared
    why = "data-parallel ranks of an MoE model run in lockstep"
    for series in SERIES:
        assert f"swtrace shares {series} over the dp group (ranks 0, 1): {why}" in served.log


@pytest.mark.parametrize("series", SERIES)
def test_replicas_stay_in_lockstep(pair: Pair, series: str) -> None:
    """Both took the same steps, as dummy steps where they had no requests, and waited for each layer in each step."""
    steps = by_rank(pair.samples, "swtrace_steps_total", series=series)
    assert steps[0] == steps[1]
    waits = by_rank(pair.samples, "swtrace_waits_total", series=series)
    assert waits == {rank: count * MODEL.layers for rank, count in steps.items()}
    dummies = by_rank(pair.samples, "swtrace_step_duration_seconds_count", series=series, phase="dummy")
    # Each had nothing to do while the other answered alone.
    assert min(dummies.values()) >= len(PROMPTS) * TOKENS
    assert by_rank(pair.samples, "swtrace_prefetch_step", kind="effective", series=series) == {0: 1, 1: 1}


def test_nothing_is_lost_or_left(pair: Pair) -> None:
    """No record is lost, and after Ctrl-C no process is left."""
    assert sum(by_rank(pair.samples, "swtrace_ring_lost_records_total").values()) == 0
    for _, served in (pair.control, pair.shared):
        assert served.status == 0
        assert served.orphans == []
