"""Which group shares a linear, and which groups and engines are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import inspections
from tests.support.vllm.layouts import Layout, choices

pytestmark = pytest.mark.vllm

LOCKSTEP = "data-parallel ranks of an MoE model run in lockstep"
WHOLE = "tensor parallelism does not split the linear"
SPLIT = "attn.proj is split over the 2 ranks of the tp group"
LAUNCHED = "the external launcher runs all of its ranks on the same prompts"
LONE = "the tp group has one rank"
PULLS = "every replica holds the same weights, and pulls them"
APART = "replicas are independent engines that do not run in lockstep"

CASES: dict[str, tuple[Layout, str]] = {
    "tensor parallel, whole": (Layout(tensor=2), f"tp 0,1: {WHOLE}$"),
    "tensor parallel, split": (Layout(tensor=2, whole=False), f"refused: {SPLIT}"),
    "one rank": (
        Layout(),
        f"refused: {LONE}; the dp group has one rank; the world has one rank; .* one replica$",
    ),
    "mixture, data parallel": (Layout(data=2, mixture=True), f"dp 0,1: {LOCKSTEP}$"),
    "mixture, both, split": (Layout(tensor=2, data=2, mixture=True, whole=False), f"dp 0,1: {LOCKSTEP}; {SPLIT}"),
    "mixture, both, whole": (
        Layout(tensor=2, data=4, mixture=True),
        f"tp x dp 0,.*,7: {WHOLE}, and {LOCKSTEP}$",
    ),
    "mixture, both, whole, dp asked": (
        Layout(tensor=2, data=4, mixture=True, setting="dp"),
        f"dp 0,1,2,3: {LOCKSTEP}$",
    ),
    "mixture, both, whole, stages": (
        Layout(tensor=2, data=2, pipeline=2, mixture=True),
        f"tp x dp 0,1,2,3: {WHOLE}, and {LOCKSTEP}; the ranks of the world are pipeline stages",
    ),
    "dense replicas, the first": (Layout(dense=2), f"replicas 0,1: {PULLS}$"),
    "dense replicas, the second": (Layout(dense=2, replica=1), f"replicas 0,1: {PULLS}$"),
    "dense replicas that are split": (Layout(tensor=2, dense=3, whole=False), f"replicas 0,2,4: {PULLS}; {SPLIT}"),
    "dense replicas, not split": (Layout(tensor=2, dense=2), f"tp 0,1: {WHOLE}$"),
    "dense replicas, not split, more": (Layout(tensor=2, dense=3), f"replicas 0,2,4: {PULLS}$"),
    "the tp group of a replica": (Layout(tensor=2, dense=2, replica=1, setting="tp"), f"tp 2,3: {WHOLE}$"),
    "dense replicas, replicas asked": (Layout(dense=2, setting="replicas"), f"replicas 0,1: {PULLS}$"),
    "dense replicas, world asked": (Layout(dense=2, setting="world"), "refused: the world has one rank"),
    "dense replicas, broadcast": (Layout(dense=2, transport="broadcast"), f"refused: .*; {APART}"),
    "dense replicas on a GPU": (Layout(dense=2, device="cuda:0"), r"refused: .* not yet proven on a GPU \(cuda:0\)"),
    "dense replicas, tried on a GPU": (Layout(dense=2, device="cuda:0", experimental=True), "replicas 0,1"),
    "dense replicas elsewhere": (Layout(dense=2, device="xpu:0"), "refused: .*; weights on xpu:0 cannot be pulled"),
    "dense replicas on two hosts": (Layout(dense=4, dense_here=2), "refused: .*; some replicas .* are on other hosts"),
    "servers": (Layout(servers=3), f"replicas 0,1,2: {PULLS}$"),
    "servers of dense replicas": (Layout(servers=2, dense=2), f"replicas 0,1,2,3: {PULLS}$"),
    "servers of mixtures": (Layout(servers=2, data=2, mixture=True, setting="replicas"), f"replicas 0,2: {PULLS}$"),
    "launched by others": (Layout(replicas=2), f"world 0,1: {LAUNCHED}$"),
    "launched by others, split": (Layout(replicas=2, tensor=2, whole=False), f"refused: {SPLIT}"),
    "launched by others, whole": (Layout(replicas=2, tensor=2), "world 0,1,2,3: the external launcher"),
    "stages, world asked": (Layout(pipeline=2, setting="world"), "refused: .* pipeline stages and hold different"),
    "tp asked, one rank": (Layout(data=2, mixture=True, setting="tp"), "refused: the tp group has one rank$"),
    "dp asked, one rank": (Layout(tensor=2, setting="dp"), "refused: the dp group has one rank$"),
    "observed, whole": (Layout(tensor=2, observed=True), "observed in tp 0,1: "),
    "observed, split": (Layout(tensor=2, whole=False, observed=True), "observed alone 0: "),
    "observed, one rank": (Layout(observed=True), "observed alone 0: "),
    "observed, stages": (Layout(pipeline=2, setting="world", observed=True), "observed alone 0: "),
    "observed, a replica": (Layout(dense=2, replica=1, observed=True), "observed alone 1: "),
    "observed, another transport": (Layout(tensor=2, backend="nccl", observed=True), "observed in tp 0,1: "),
    "another transport": (Layout(tensor=2, backend="nccl"), "refused: the tp group communicates through nccl"),
}


@pytest.fixture(scope="module")
def chosen(folder: Path) -> dict[str, str]:
    """Return the choice for each case, all made in one process."""
    (answers,) = fork_ranks(choices, ({name: layout for name, (layout, _) in CASES.items()},), folder)
    return answers


@pytest.mark.parametrize("case", CASES)
def test_group_choice(chosen: dict[str, str], case: str) -> None:
    """The largest group is chosen whose ranks hold equal weights and run in lockstep, or pull; with the reason."""
    assert re.match(CASES[case][1], chosen[case]), chosen[case]


def test_engines_that_cannot_share(folder: Path) -> None:
    """Each feature that prevents sharing is named in its refusal, and nothing else is refused."""
    (why,) = fork_ranks(inspections.refusals, (), folder)
    assert why.pop("nothing") == ""
    words = {
        "offloading": "UVAOffloader",
        "ubatching": "ubatching",
        "elastic": "elastic expert parallelism",
        "sleep": "sleep mode",
        "transfer": "weight transfer",
        "sharded": "sharded_state",
        "encoder": "encoder-decoder",
        "freezing": "max_autotune",
    }
    assert {name: word for name, word in words.items() if word in why[name]} == words
