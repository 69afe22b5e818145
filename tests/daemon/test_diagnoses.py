"""The API's diagnosis costs little, however often it is asked for, and a rank that stands still is named at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from swtrace.daemon.api import Query
from swtrace.daemon.diagnoses import Diagnoses
from swtrace.daemon.snapshot import Snapshot
from swtrace.observing import Observation
from tests.support.scenes import observation_of
from tests.support.simulated_rings import scenario


class Seen:
    """The part of a snapshot that a diagnosis reads."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation


def snapshot(observation: Observation) -> Snapshot:
    """Return a snapshot of an observation."""
    return cast("Snapshot", Seen(observation))


def kinds(document: dict[str, Any]) -> set[str]:
    """Return the kinds of all findings about series."""
    return {finding["kind"] for series in document["series"] for finding in series["findings"]}


def test_an_answer_is_kept_until_its_cost_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same object for ten times its CPU time; another query has an answer of its own."""
    now_s, spent_s = 100.0, 0.0

    def cpu_s() -> float:
        nonlocal spent_s
        spent_s += 1.0  # so each diagnosis takes a second
        return spent_s

    monkeypatch.setattr("swtrace.daemon.diagnoses.time.monotonic", lambda: now_s)
    monkeypatch.setattr("swtrace.daemon.diagnoses.time.thread_time", cpu_s)
    kept, seen = Diagnoses(), snapshot(observation_of(scenario("hidden")))
    first = kept.of(seen, Query())
    now_s += 9.9
    assert kept.of(seen, Query()) is first
    assert kept.of(seen, Query(run="run")) is not first
    now_s += 0.2
    assert kept.of(seen, Query()) is not first


def test_a_rank_that_dies_is_named_at_once() -> None:
    """A kept answer does not hide it."""
    seen = observation_of(scenario("straggler"))
    kept = Diagnoses()
    assert "died" not in kinds(kept.of(snapshot(seen), Query()))
    dead = replace(seen.ranks[1], died=True, ring=replace(seen.ranks[1].ring, alive=False))
    later = replace(seen, ranks=(seen.ranks[0], dead, *seen.ranks[2:]))
    assert "died" in kinds(kept.of(snapshot(later), Query()))


def test_a_query_for_one_series_has_no_other() -> None:
    """As in the other documents."""
    seen = snapshot(observation_of(scenario("hidden")))
    assert Diagnoses().of(seen, Query(series="o_proj"))["series"]
    assert not Diagnoses().of(seen, Query(series="other"))["series"]
