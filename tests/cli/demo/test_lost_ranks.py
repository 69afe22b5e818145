"""A rank of the demo that waits for a lost one where torch reports no error ends with one all the same."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from swtrace.cli.demo.lost_ranks import LostRanks
from swtrace.cli.demo.report_lines import RankReport
from swtrace.cli.exit_codes import ExitCode
from tests.support.patience import eventually, patience


def test_those_that_died_are_named_before_those_that_failed() -> None:
    """The others fail because of the dead."""
    lost = LostRanks(mmap.mmap(-1, 4))
    assert not lost
    lost.add(2, died=False)
    assert lost
    assert str(lost) == "rank 2 failed"
    lost.add(0, died=True)
    lost.add(3, died=True)
    assert str(lost) == "ranks 0, 3 died"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what this rank reports before it would end."""
    texts: list[str] = []
    monkeypatch.setattr(RankReport, "write", lambda report: texts.append(report.text))
    monkeypatch.setattr(os, "_exit", lambda code: texts.append(ExitCode(code).name))
    return texts


def test_a_rank_that_is_stuck_ends_with_an_error(said: list[str]) -> None:
    """It names itself, how far it came, and who was lost."""
    lost = LostRanks(mmap.mmap(-1, 2))
    with lost.ending_if_stuck(1, lambda: "rank 1, before the first step", 0.0):
        assert not said
        lost.add(0, died=True)
        eventually(lambda: len(said) == 2, "the rank to end")
    assert said == ["rank 1, before the first step: rank 0 died; this rank would still wait for it", "RANK_LOST"]


@pytest.mark.parametrize("place", ["", "rank 1, layer 3"])
def test_a_rank_that_goes_on_or_is_done_does_not_end(said: list[str], place: str) -> None:
    """A rank that pulls goes on with the layers of the dead; one that has left the block has ended by itself."""
    lost = LostRanks(mmap.mmap(-1, 2))
    with lost.ending_if_stuck(1, lambda: place, 0.0):
        if not place:
            lost.add(0, died=True)
            _await_watches()
    lost.add(0, died=True)
    _await_watches()
    assert said == []


def _await_watches() -> None:
    for thread in threading.enumerate():
        if thread.name == "demo-lost":
            thread.join(patience())
