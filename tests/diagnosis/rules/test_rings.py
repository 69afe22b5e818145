"""Lost records, unreadable rings and refused series are findings about ranks, whatever their series."""

from __future__ import annotations

from dataclasses import replace

from swtrace.diagnosis.diagnosis import diagnose
from swtrace.diagnosis.finding import Finding, Level
from swtrace.observing.observation import Observation
from tests.support.scenes import observation_of
from tests.support.schedules import simulate


def healthy() -> Observation:
    """Return a healthy run of two ranks."""
    return observation_of(simulate(ranks=2, layers=4, k=1, steps=20, compute=lambda _rank, _step, _position: 1_000_000))


def found(seen: Observation) -> Finding:
    """Return the only finding about hosts."""
    (finding,) = diagnose(seen).of_hosts
    return finding


def test_a_healthy_run_has_no_finding_about_rings() -> None:
    """Nothing is lost, unreadable or refused."""
    assert diagnose(healthy()).of_hosts == ()


def test_lost_records_are_counted_and_their_ranks_named() -> None:
    """The rank that lost most comes first, and damage is told apart from late reading."""
    seen = healthy()
    rings = [rank.ring.statistics._replace(lapped=lost) for rank, lost in zip(seen.ranks, (2, 5), strict=True)]
    ranks = tuple(
        replace(rank, ring=replace(rank.ring, statistics=its)) for rank, its in zip(seen.ranks, rings, strict=True)
    )
    lost = found(replace(seen, ranks=ranks))
    assert (lost.kind, lost.level, lost.ranks) == ("records_lost", Level.WARNING, (1, 0))
    assert lost.sentence.startswith("7 records of ranks 1, 0 are lost because they were overwritten")
    assert "SWTRACE_RING_RECORDS" in lost.advice


def test_a_ring_that_cannot_be_read_is_named_with_the_reason() -> None:
    """The evidence has path and reason of every such file."""
    unreadable = found(replace(healthy(), problems={"/rings/x": "it is not a ring"}))
    assert unreadable.kind == "rings_unreadable"
    assert unreadable.evidence == ("/rings/x: it is not a ring.",)


def test_a_refused_series_is_named_once_with_its_ranks() -> None:
    """Ranks with the same reason are in one finding."""
    seen = healthy()
    ranks = tuple(
        replace(rank, series=(*rank.series, replace(rank.series[0], name="mlp", refused="its layers differ")))
        for rank in seen.ranks
    )
    refused = found(replace(seen, ranks=ranks))
    assert (refused.kind, refused.ranks) == ("refused", (0, 1))
    assert refused.sentence == "mlp is not shared on ranks 0, 1: its layers differ."
