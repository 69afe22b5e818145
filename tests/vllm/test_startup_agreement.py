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


def test_replicas_share_or_none_does(folder: Path) -> None:
    """A linear that one replica cannot share is shared by no replica; its own groups are its own affair."""
    decisions = {
        0: {"a": "replicas", "b": "replicas", "c": "tp", "d": "replicas"},
        1: {"a": "replicas", "b": "", "c": ""},
    }
    answers = fork_ranks(decided, (folder / "replicas" / "world", decisions, 60.0, 2), folder, ranks=2)
    assert answers == (
        {
            "a": "replicas",
            "b": "refused: rank 1 refuses: b is odd",
            "c": "tp",
            "d": "refused: rank 1 was not asked to share it; set the same SWTRACE_SERIES on all ranks",
        },
        {"a": "replicas", "b": "refused: b is odd", "c": "refused: c is odd"},
    )


def test_a_replica_is_refused_by_one_rank_of_another(folder: Path) -> None:
    """If a rank refuses, its own replica refuses, and so do all ranks of the others."""
    decisions = {rank: {"a": "" if rank == 3 else "replicas"} for rank in range(4)}
    answers = fork_ranks(decided, (folder / "ranks" / "world", decisions, 60.0, 2), folder, ranks=4)
    assert [answer["a"] for answer in answers] == [
        "refused: rank 2 refuses: rank 1 refuses: a is odd",
        "refused: rank 3 refuses: a is odd",
        "refused: rank 1 refuses: a is odd",
        "refused: a is odd",
    ]


def test_a_replica_that_does_not_start_is_named(folder: Path) -> None:
    """The other one ends with an error that says which settings must be equal."""
    first, _ = fork_ranks(decided, (folder / "late" / "world", {0: {"a": "replicas"}}, 0.5, 2), folder, ranks=2)
    assert first["error"] == (
        "refused: rank 0: the replicas could not agree on what to share: rank 1 did not start, or died within 0.5 s "
        "(SWTRACE_TIMEOUT); all replicas need the same SWTRACE_DIR and SWTRACE_RUN_ID"
    )


def test_a_replica_that_shares_nothing_waits_for_none(folder: Path) -> None:
    """It goes on at once."""
    decisions = {0: {"a": ""}}
    first, _ = fork_ranks(decided, (folder / "alone" / "world", decisions, 60.0, 2), folder, ranks=2)
    assert first == {"a": "refused: a is odd"}


def test_a_folder_that_cannot_be_used_stops_only_replicas_that_share(folder: Path) -> None:
    """A replica that shares nothing needs no folder; the other one names it, and the setting that moves it."""
    here = folder / "no folder"
    here.mkdir()
    (here / "meet").touch()
    decisions = {0: {"a": ""}, 1: {"a": "replicas"}}
    first, second = fork_ranks(decided, (here / "world", decisions, 60.0, 2), folder, ranks=2)
    assert first == {"a": "refused: a is odd"}
    said = f"refused: rank 1: the replicas could not agree on what to share: the share folder {here}/meet/pull-"
    assert second["error"].startswith(said)
    assert second["error"].endswith("SWTRACE_DIR sets its parent")
