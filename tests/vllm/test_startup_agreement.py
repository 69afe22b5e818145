"""All ranks know each other's decisions: all of them share a linear, or none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.layouts import decided

pytestmark = pytest.mark.vllm


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
