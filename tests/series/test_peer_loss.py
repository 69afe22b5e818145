"""The message when a collective fails: what happened, on which layer, who died, and which setting helps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from swtrace.series import RankGroup, peer_loss
from swtrace.series.layer import SeriesLayer
from swtrace.series.peer_loss import BEFORE_STEPS, Peers
from swtrace.trace.recorder import Recorder
from tests.support.writer_process import identity

RANKS = (4, 6)
WHERE = "series 's', rank 4"
CLOSED = RuntimeError("Connection closed by peer\nException raised from read")


def layer(*, owned: bool) -> SeriesLayer:
    """Return layer 3, whose source is rank 6 unless this rank is."""
    return SeriesLayer(0, 3, nn.Linear(2, 2), source=0 if owned else 1, owned=owned)


def unknown() -> Peers:
    """Return peers of which nothing is known."""
    return Peers(WHERE, RankGroup(RANKS, 0), RANKS)


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    """Return peers whose rings are known; nobody looks for the dead for long."""
    monkeypatch.setattr(peer_loss, "PATIENCE_S", 0.0)
    made = unknown()
    made.recorder = Recorder.create(tmp_path, identity(4))
    yield made
    made.recorder.close()


def ended(monkeypatch: pytest.MonkeyPatch, closed: dict[int, bool]) -> None:
    """Let ranks of this host have ended, each with or without closing its ring."""
    monkeypatch.setattr(peer_loss, "ended_ranks", lambda *_: closed)


def test_what_failed_is_named() -> None:
    """A broadcast that did not arrive names its source, a send does not, and an agreement has no layer."""
    said, peers = ": Connection closed by peer", unknown()
    assert peers.describe_loss(layer(owned=False), CLOSED) == (
        f"{WHERE}, layer 3: did not arrive from rank 6, its source{said}"
    )
    assert peers.describe_loss(layer(owned=True), CLOSED) == f"{WHERE}, layer 3: its broadcast could not be sent{said}"
    assert peers.describe_loss(None, CLOSED) == f"{WHERE}, {BEFORE_STEPS}: the ranks could not agree{said}"


@pytest.mark.parametrize("words", ["Timed out waiting 40000ms for recv operation", "Wait timeout"])
def test_a_timeout_comes_with_its_setting(words: str) -> None:
    """However the transport puts it."""
    said = unknown().describe_loss(None, RuntimeError(words))
    assert said.endswith(f": {words}; SWTRACE_TIMEOUT sets how long a rank waits for a peer")


def test_only_the_dead_of_the_group_are_named(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of another group may have died as well, but this broadcast did not need it."""
    ended(monkeypatch, {9: False})
    said = peers.describe_loss(layer(owned=False), CLOSED)
    assert "(no rank on this host is known to have died)" in said
    ended(monkeypatch, {6: False, 9: False})
    assert "its source (rank 6 died): " in peers.describe_loss(layer(owned=False), CLOSED)


def test_a_rank_that_closed_its_ring_has_not_died(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended, perhaps with an error of its own, and is named as long as no rank died."""
    ended(monkeypatch, {6: True})
    assert "its source (rank 6 has ended): " in peers.describe_loss(layer(owned=False), CLOSED)
    ended(monkeypatch, {4: False, 6: True})
    assert "(rank 4 died): " in peers.describe_loss(layer(owned=False), CLOSED)


def test_an_untraced_rank_may_have_died(peers: Peers) -> None:
    """It has no ring that would show it. If its process is unknown too, the message says so."""
    peers.untraced = [6]
    said = peers.describe_loss(layer(owned=False), CLOSED)
    assert "(rank 6 runs untraced and may have died; no other rank on this host has)" in said
    peers.untraced = [6, 4]
    said = peers.describe_loss(layer(owned=False), CLOSED)
    assert "(ranks 4, 6 run untraced and may have died; " in said


def test_a_death_is_looked_for_only_after_an_error_of_a_collective(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other errors of a forward are its own, whoever died meanwhile."""
    ended(monkeypatch, {9: False})
    assert peers.describe_death(f"{WHERE}, layer 5", CLOSED) == ""
    ended(monkeypatch, {6: False})
    assert peers.describe_death(f"{WHERE}, layer 5", RuntimeError("shapes differ")) == ""
    assert unknown().describe_death(f"{WHERE}, layer 5", CLOSED) == ""
    assert peers.describe_death(f"{WHERE}, layer 5", CLOSED) == (
        f"{WHERE}, layer 5: rank 6 died; this rank was in another collective: Connection closed by peer"
    )


def test_the_first_to_die_is_named_however_many_end_after_it(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that loses another one may look for it twice, and others end because of it in between."""
    ended(monkeypatch, {6: False})
    assert "(rank 6 died): " in peers.describe_loss(layer(owned=False), CLOSED)
    ended(monkeypatch, {4: False, 6: False})
    assert "(rank 6 died): " in peers.describe_loss(layer(owned=False), CLOSED)
