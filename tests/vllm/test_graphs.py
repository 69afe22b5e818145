"""Series under vLLM's CUDA graphs, as far as this can be tested without a GPU: what is captured and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import graph_inspections

pytestmark = pytest.mark.vllm

PIECEWISE = ("PIECEWISE", "FULL_AND_PIECEWISE")
WHOLE = ("NONE", "FULL", "FULL_DECODE_ONLY")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    """Return the findings of one vLLM process."""
    (seen,) = fork_ranks(graph_inspections.graphs, (), folder)
    return dict(seen)


def test_piecewise_graphs_are_split_at_reach_and_wait(seen: dict[str, Any]) -> None:
    """Both operators are added once to vLLM's own splitting ops, which all stay; the mode does not change."""
    for mode in PIECEWISE:
        assert seen["modes"][mode] == {
            "refused": "",
            "kept": True,
            "added": ["swtrace::reach", "swtrace::wait"],
            "attention": True,
            "mode": mode,
        }
    assert all(seen["operators"]), "vLLM looks operators up by these names"


def test_graphs_of_whole_forwards_are_not_split(seen: dict[str, Any]) -> None:
    """If no pieces are captured, vLLM's configuration does not change."""
    for mode in WHOLE:
        assert seen["modes"][mode]["added"] == []
        assert seen["modes"][mode]["refused"] == ""
        assert seen["modes"][mode]["mode"] == mode


def test_pieces_that_cannot_be_split_are_refused(seen: dict[str, Any]) -> None:
    """Piecewise graphs without splitting ops, and breakable ones, are refused with the setting that fixes it."""
    assert "FULL_DECODE_ONLY" in seen["without"]
    assert "VLLM_USE_BREAKABLE_CUDAGRAPH=0" in seen["breakable"]


def test_a_series_is_notified_of_graphs_of_whole_forwards_only(seen: dict[str, Any]) -> None:
    """A series ignores pieces; a whole forward is a step, whichever runner replays it."""
    assert seen["whole"] == {"FULL": True, "PIECEWISE": False, "newer runner": True}


def test_the_offloader_answers_to_what_vllm_calls(seen: dict[str, Any]) -> None:
    """VLLM's offloader interface still has the two methods, and the series' offloader defines both."""
    assert seen["called"] == [True, True]
