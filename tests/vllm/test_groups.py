"""Which group shares a linear, which is refused, and that all ranks hear of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.layouts import Layout, choices, decided, engine_refused, stages
from tests.support.vllm.vllm_runs import refusals

LOCKSTEP = "data-parallel ranks of an MoE model run in lockstep"
WHOLE = "tensor parallelism does not split the linear"
SPLIT = "attn.proj is split over the 2 ranks of the tp group"
LAUNCHED = "the external launcher runs all of its ranks on the same prompts"
DENSE = "data-parallel replicas of a dense model are independent engines"

CASES: dict[str, tuple[Layout, str]] = {
    "tensor parallel, whole": (Layout(tensor=2), f"tp 2: {WHOLE}$"),
    "tensor parallel, split": (Layout(tensor=2, whole=False), f"refused: {SPLIT}"),
    "one rank": (Layout(), "refused: the tp group has one rank; the dp group has one rank; the world has one rank"),
    "mixture, data parallel": (Layout(data=2, mixture=True), f"dp 2: {LOCKSTEP}$"),
    "mixture, both, split": (Layout(tensor=2, data=2, mixture=True, whole=False), f"dp 2: {LOCKSTEP}; {SPLIT}"),
    "mixture, both, whole": (Layout(tensor=2, data=4, mixture=True), f"tp x dp 8: {WHOLE}, and {LOCKSTEP}$"),
    "mixture, both, whole, dp asked": (Layout(tensor=2, data=4, mixture=True, setting="dp"), f"dp 4: {LOCKSTEP}$"),
    "mixture, both, whole, stages": (
        Layout(tensor=2, data=2, pipeline=2, mixture=True),
        f"tp x dp 4: {WHOLE}, and {LOCKSTEP}; the ranks of the world are pipeline stages",
    ),
    "dense replicas, the first": (Layout(asked_replicas=2), f"refused: the tp group has one rank; {DENSE}[^;]*;[^;]*$"),
    "dense replicas, the second": (Layout(replica=1, setting="dp"), f"refused: {DENSE}"),
    "dense replicas that are split": (Layout(tensor=2, asked_replicas=2), f"tp 2: {WHOLE}; {DENSE}"),
    "dense replicas, world asked": (Layout(asked_replicas=2, setting="world"), f"refused: {DENSE}"),
    "launched by others": (Layout(replicas=2), f"world 2: {LAUNCHED}$"),
    "launched by others, split": (Layout(replicas=2, tensor=2, whole=False), f"refused: {SPLIT}"),
    "launched by others, whole": (Layout(replicas=2, tensor=2), "world 4: the external launcher"),
    "stages, world asked": (Layout(pipeline=2, setting="world"), "refused: .* pipeline stages and hold different"),
    "tp asked, one rank": (Layout(data=2, mixture=True, setting="tp"), "refused: the tp group has one rank$"),
    "dp asked, one rank": (Layout(tensor=2, setting="dp"), "refused: the dp group has one rank$"),
    "another transport": (Layout(tensor=2, backend="nccl"), "refused: the tp group communicates through nccl"),
}


@pytest.fixture(scope="module")
def chosen(folder: Path) -> dict[str, str]:
    """Return the choice for each case, all made in one process."""
    (answers,) = fork_ranks(choices, ({name: layout for name, (layout, _) in CASES.items()},), folder)
    return answers


@pytest.mark.parametrize("case", CASES)
def test_group_choice(chosen: dict[str, str], case: str) -> None:
    """The largest group whose ranks hold equal weights and run in lockstep is chosen, with the reason."""
    assert re.match(CASES[case][1], chosen[case]), chosen[case]


def test_all_ranks_share_or_none(folder: Path) -> None:
    """If one rank refuses, was not asked, or would use another group, no rank shares and that rank is named."""
    rank_0 = {"a": "tp", "b": "tp", "c": "tp", "d": "tp"}
    decisions = {0: rank_0, 1: {"a": "tp", "b": "", "d": "dp"}}
    first, second = fork_ranks(decided, (folder / "decided", decisions, 60.0), folder, ranks=2)
    assert first == {
        "a": "tp",
        "b": "refused: rank 1 refuses: b is odd",
        "c": "refused: rank 1 was not asked to share it; set the same SWTRACE_SERIES on all ranks",
        "d": "refused: rank 1 would share it over another group, dp instead of tp",
    }
    assert second == {
        "a": "tp",
        "b": "refused: b is odd",
        "d": "refused: rank 0 would share it over another group, tp instead of dp",
    }


def test_a_rank_that_does_not_answer_is_named(folder: Path) -> None:
    """If SWTRACE=1 is missing on one rank, the other ends with an error that says so instead of hanging."""
    first, second = fork_ranks(decided, (folder / "silent", {0: {"a": "tp"}}, 0.5), folder, ranks=2)
    said = "refused: rank 0: no answer from rank 1 on what to share within 0.5 s; set SWTRACE=1"
    assert first["error"].startswith(said)
    assert second == {}


def test_refused_engine_is_a_metric(folder: Path) -> None:
    """An engine that cannot share keeps its offloader, and every requested linear is refused with its reason."""
    rings = folder / "rings-engine"
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings), "SWTRACE_SERIES": "a.b,c"}
    assert fork_ranks(engine_refused, (folder / "refused", environment), folder) == ("UVAOffloader",)
    # The fourth data-parallel replica of a dense model: torch calls it rank 0, the run does not.
    ((rank, why),) = refusals(rings, ranks=1).items()
    assert rank == 3
    assert why.keys() == {"a.b", "c"}
    assert all("turn its weight offloading off" in reason for reason in why.values())


def test_each_stage_has_its_own_first_layer(folder: Path) -> None:
    """With an uneven split a pipeline stage's series begins and ends where vLLM builds the stage's layers."""
    assert fork_ranks(stages, (11, "5,2,4"), folder) == ([(0, 5), (5, 7), (7, 11)],)
