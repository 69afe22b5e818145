"""The message when a collective fails: what happened, on which layer, who died, and which setting helps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from swtrace.series import peer_loss
from swtrace.series.layer import SeriesLayer
from swtrace.series.peer_loss import describe_death, describe_loss
from swtrace.trace import liveness
from swtrace.trace.recorder import Recorder
from tests.support.writer_process import identity

RANKS = (4, 6)
WHERE = "series 's', rank 4"
CLOSED = RuntimeError("Connection closed by peer\nException raised from read")


def layer(*, owned: bool) -> SeriesLayer:
    """Return layer 3, whose source is rank 6 unless this rank is."""
    return SeriesLayer(0, 3, nn.Linear(2, 2), source=0 if owned else 1, owned=owned)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Return this rank's recorder; nobody looks for the dead for long."""
    monkeypatch.setattr(peer_loss, "PATIENCE_S", 0.0)
    made = Recorder.create(tmp_path, identity(4))
    yield made
    made.close()


def dead(monkeypatch: pytest.MonkeyPatch, *ranks: int) -> None:
    """Let ranks of this host be dead."""
    monkeypatch.setattr(liveness, "dead_ranks", lambda *_: tuple(identity(rank) for rank in ranks))


def test_what_failed_is_named() -> None:
    """A broadcast that did not arrive names its source, a send does not, and an agreement has no layer."""
    said = ": Connection closed by peer"
    assert describe_loss(WHERE, RANKS, layer(owned=False), CLOSED, None) == (
        f"{WHERE}, layer 3: did not arrive from rank 6, its source{said}"
    )
    assert describe_loss(WHERE, RANKS, layer(owned=True), CLOSED, None) == (
        f"{WHERE}, layer 3: its broadcast could not be sent{said}"
    )
    assert describe_loss(WHERE, RANKS, None, CLOSED, None) == f"{WHERE}: the ranks could not agree{said}"


@pytest.mark.parametrize("words", ["Timed out waiting 40000ms for recv operation", "Wait timeout"])
def test_a_timeout_comes_with_its_setting(words: str) -> None:
    """However the transport puts it."""
    said = describe_loss(WHERE, RANKS, None, RuntimeError(words), None)
    assert said.endswith(f": {words}; SWTRACE_TIMEOUT sets how long a rank waits for a peer")


def test_only_the_dead_of_the_group_are_named(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of another group may have died as well, but this broadcast did not need it."""
    dead(monkeypatch, 6, 9)
    assert "its source (rank 6 died): " in describe_loss(WHERE, RANKS, layer(owned=False), CLOSED, recorder)
    dead(monkeypatch, 9)
    said = describe_loss(WHERE, RANKS, layer(owned=False), CLOSED, recorder)
    assert "(no rank on this host is known to have died)" in said


def test_an_untraced_rank_may_have_died(recorder: Recorder) -> None:
    """It has no ring that would show it, so the message says that it is unknown."""
    said = describe_loss(WHERE, RANKS, layer(owned=False), CLOSED, recorder, untraced=[6])
    assert "(rank 6 runs untraced and may have died; no other rank on this host has)" in said
    said = describe_loss(WHERE, RANKS, layer(owned=False), CLOSED, recorder, untraced=[6, 4])
    assert "(ranks 4, 6 run untraced and may have died; " in said


def test_a_death_is_looked_for_only_after_an_error_of_a_collective(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other errors of a forward are its own, whoever died meanwhile."""
    dead(monkeypatch, 6)
    assert describe_death(WHERE, RANKS, 5, RuntimeError("shapes differ"), recorder) == ""
    assert describe_death(WHERE, RANKS, 5, CLOSED, None) == ""
    assert describe_death(WHERE, RANKS, 5, CLOSED, recorder) == (
        f"{WHERE}, layer 5: rank 6 died; this rank was in another collective: Connection closed by peer"
    )
    dead(monkeypatch, 9)
    assert describe_death(WHERE, RANKS, 5, CLOSED, recorder) == ""
