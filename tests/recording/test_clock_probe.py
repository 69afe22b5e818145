"""Probes of a daemon's clock: true, quick to stop, and in nobody's way."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from swtrace.credentials import ANONYMOUS
from swtrace.daemon.clock_endpoint import ClockEndpoint
from swtrace.ledger.alignment import Probe
from swtrace.observing.events import ClockProbed, Event, RecordsRead
from swtrace.observing.merged import Merged
from swtrace.recording.clock_probe import ROUND_TRIPS, ClockProbes
from swtrace.recording.remote import DaemonStream
from swtrace.trace.clocks import own_clock
from tests.support.daemon_threads import serving
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.settling import until

AHEAD_NS = 3600 * 10**9


@contextmanager
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """Serve a folder as a host does whose clock is an hour ahead."""
    monkeypatch.setattr("swtrace.daemon.clock_endpoint.own_clock", lambda: "boot-b")
    monkeypatch.setattr("swtrace.daemon.clock_endpoint.now_ns", lambda: time.monotonic_ns() + AHEAD_NS)
    with serving(folder) as client:
        yield client


def probing() -> list[str]:
    """Return the names of the threads that probe."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("swtrace-clock")]


class Answering:
    """Answers at once, with an early instant."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def get(self, _path: str) -> bytes:
        """Return what a daemon answers."""
        return b'{"clock": "boot-b", "arrived_ns": 1, "monotonic_ns": 1}'

    def close(self) -> None:
        """Do nothing."""


def test_a_probe_bounds_the_other_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other clock showed lies between the two readings of this one, an hour apart."""
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 0.01)
    arrived: queue.Queue[Probe] = queue.Queue()
    with elsewhere(tmp_path, monkeypatch) as client:
        probes = ClockProbes(str(client.base_url), ANONYMOUS, arrived.put)
        found = [arrived.get(timeout=patience()) for _ in range(5)]
        probes.close()
    for probe in found:
        assert (probe.clock, probe.by) == ("boot-b", own_clock())
        assert probe.low_ns + AHEAD_NS <= probe.at_ns <= probe.high_ns + AHEAD_NS
    eventually(lambda: not probing(), "the probing thread to end")


def test_the_narrowest_of_several_round_trips_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all but one of the readings are slow, the probe is as narrow as that one."""
    monkeypatch.setattr("swtrace.recording.clock_probe._FIRST_S", ())
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 60.0)
    asked: list[str] = []

    class Slow(Answering):
        def get(self, path: str) -> bytes:
            time.sleep(0.0 if len(asked) == 2 else 0.05)
            asked.append(path)
            return super().get(path)

    monkeypatch.setattr("swtrace.recording.clock_probe.KeptConnection", Slow)
    arrived: queue.Queue[Probe] = queue.Queue()
    probes = ClockProbes(str(tmp_path), ANONYMOUS, arrived.put)
    probe = arrived.get(timeout=patience())
    probes.close()
    assert len(asked) == ROUND_TRIPS
    assert probe.high_ns - probe.low_ns < 0.05e9


def test_what_the_daemon_works_on_an_answer_is_no_part_of_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that takes 50 ms for each answer is probed as well as one that answers at once."""

    class Busy(ClockEndpoint):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(0.05)
            await super().__call__(scope, receive, send)

    monkeypatch.setattr("swtrace.daemon.http_app.ClockEndpoint", Busy)
    arrived: queue.Queue[Probe] = queue.Queue()
    with elsewhere(tmp_path, monkeypatch) as client:
        probes = ClockProbes(str(client.base_url), ANONYMOUS, arrived.put)
        probe = arrived.get(timeout=patience())
        probes.close()
    assert probe.low_ns + AHEAD_NS <= probe.at_ns <= probe.high_ns + AHEAD_NS
    assert probe.high_ns - probe.low_ns < 0.05e9


def test_the_first_probes_follow_one_another_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader need not wait for the usual pauses until the drift between the clocks is bounded."""
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 3600.0)
    monkeypatch.setattr("swtrace.recording.clock_probe.KeptConnection", Answering)
    arrived: queue.Queue[Probe] = queue.Queue()
    probes = ClockProbes(str(tmp_path), ANONYMOUS, arrived.put)
    found = [arrived.get(timeout=patience()) for _ in range(4)]
    probes.close()
    assert len(found) == 4


def test_a_narrow_round_trip_ends_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first probe learns how narrow round trips can be, and later ones ask until one is about as narrow."""
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 0.0)
    took_us = [*[300] * (ROUND_TRIPS - 1), 100, 140, 200, 160, 149]
    passed = chain.from_iterable((0, us * 1000) for us in chain(took_us, repeat(100)))
    total = 0

    def now() -> int:
        nonlocal total
        total += next(passed)
        return total

    monkeypatch.setattr("swtrace.recording.clock_probe.KeptConnection", Answering)
    monkeypatch.setattr("swtrace.recording.clock_probe.now_ns", now)
    arrived: queue.Queue[Probe] = queue.Queue()
    probes = ClockProbes(str(tmp_path), ANONYMOUS, arrived.put)
    found = [arrived.get(timeout=patience()) for _ in range(4)]
    probes.close()
    assert [(probe.high_ns - probe.low_ns) // 1000 for probe in found] == [100, 140, 149, 100]


def test_a_daemon_with_the_same_clock_is_not_probed_again(tmp_path: Path) -> None:
    """A daemon of this host needs no probe: no event comes, and the thread ends."""
    RecordedRun(tmp_path).write(3)
    with serving(tmp_path) as client:
        stream = DaemonStream(str(client.base_url))
        seen: list[Event] = []
        until(lambda: bool(seen) and not probing(), lambda: seen.extend(stream.poll().events))
        stream.close()
    assert not [event for event in seen if isinstance(event, ClockProbed)]


@pytest.mark.parametrize("answer", ["/api/v1/nothing", "/api/v1/ranks", "/metrics"])
def test_a_daemon_that_cannot_be_probed_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """A daemon without the path, or one that answers something else, loses nothing but its probes."""
    monkeypatch.setattr("swtrace.recording.clock_probe.PATH", answer)
    run = RecordedRun(tmp_path)
    run.write(3)
    with elsewhere(tmp_path, monkeypatch) as client:
        stream = DaemonStream(str(client.base_url))
        seen: list[Event] = []
        until(lambda: len(stream.look().rings) == 2, lambda: seen.extend(stream.poll().events))
        stream.close()
    eventually(lambda: not probing(), "the probing thread to end")
    assert stream.lost is None
    assert not [event for event in seen if isinstance(event, ClockProbed)]


def test_probing_stops_with_the_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An origin that is closed leaves no thread that probes, also in the middle of its pause."""
    monkeypatch.setattr("swtrace.recording.clock_probe._FIRST_S", ())
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 3600.0)
    with elsewhere(tmp_path, monkeypatch) as client:
        stream = Merged([DaemonStream(str(client.base_url))])
        seen: list[Event] = []
        until(lambda: any(isinstance(event, ClockProbed) for event in seen), lambda: seen.extend(stream.poll().events))
        assert probing()
        stream.close()
        eventually(lambda: not probing(), "the probing thread to end")


def test_a_reader_that_takes_nothing_gets_no_probes_and_loses_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes that find the reader's queue full are dropped: they wait for nobody, and displace no records."""
    monkeypatch.setattr("swtrace.recording.remote._QUEUE", 1)
    monkeypatch.setattr("swtrace.recording.clock_probe._EVERY_S", 0.0)
    run = RecordedRun(tmp_path)
    run.write(20)
    with elsewhere(tmp_path, monkeypatch) as client:
        stream = DaemonStream(str(client.base_url))
        stream.poll()
        asked = client.get("/api/v1/ranks").json()["ranks"]
        time.sleep(0.3)
        taken: list[Event] = []
        until(
            lambda: sum(len(event) for event in taken if isinstance(event, RecordsRead)) >= 2 * run.written,
            lambda: taken.extend(stream.poll().events),
        )
        stream.close()
    assert len(asked) == 2
    assert stream.lost is None
