"""The thread that owns the watch: drains the rings, numbers finished steps, publishes snapshots.

Rings, ledger and readers are touched by this thread alone. HTTP handlers ask for a snapshot and get one that
was taken after they asked, so that a scrape sees everything committed before it; while they wait and render, the
thread goes on draining. No exception ends the thread: it is logged, ``/healthz`` tells if it lasts, and the next
poll tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from swtrace.daemon.exemplars import SlowestWaits
from swtrace.daemon.export import rank_resource
from swtrace.daemon.snapshot import NumberedStep, RankState, SeriesWindows, Snapshot
from swtrace.daemon.spans import SpanOrigin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from opentelemetry.sdk.resources import Resource

    from swtrace.daemon.export import SpanSink
    from swtrace.ledger.facts import LedgerFacts, SeriesKey
    from swtrace.trace.identity import RankIdentity, RankKey
    from swtrace.watch import Watch

_log = logging.getLogger(__name__)

POLL_S = 0.05
"""Between polls, unless there is more to read at once: a ring of default size lasts for 21 s, and a request polls
anyway, so this only bounds how long finished steps wait for their export."""
DOWN_SHOWN_S = 300.0
"""How long a rank stays in snapshots once its writer is gone: long enough for several scrapes to see it down."""
KEPT_STEPS = 64
"""Finished steps kept for the API, per series."""
STALE_S = 10.0
"""Without a successful poll for this long, the daemon calls itself unhealthy."""


class Observer:
    """Runs the watch in a thread of its own."""

    def __init__(self, watch: Watch, spans: SpanSink, *, down_shown_s: float = DOWN_SHOWN_S) -> None:
        """Take over the watch; nothing else may touch it until :meth:`stop` has returned."""
        self._watch = watch
        self._spans = spans
        self._down_shown_ns = round(down_shown_s * 1e9)
        self._down_since: dict[Path, int] = {}
        self._resources: dict[RankIdentity, Resource] = {}
        self._steps: dict[SeriesKey, deque[NumberedStep]] = {}
        self._slowest = SlowestWaits()
        self._started_realtime_ns = time.time_ns()
        self._cursor = 0
        self._changed = threading.Condition()
        self._asked = 0
        self._answered = 0
        self._snapshot: Snapshot | None = None
        self._stopping = False
        self._streams_end = False
        self._polled_ns = time.monotonic_ns()
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="swtrace-observer", daemon=True)

    @property
    def directory(self) -> Path:
        """The folder of rings."""
        return self._watch.tail.directory

    @property
    def streaming(self) -> bool:
        """Whether streams of records may go on."""
        return not (self._streams_end or self._stopping)

    def end_streams(self) -> None:
        """Let every stream of records end: the server waits for them before it stops. Safe in a signal handler."""
        self._streams_end = True

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Drain once more, finish every pending step, hand its spans on, and end the thread; False: not in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def snapshot(self, timeout_s: float = 2.0) -> Snapshot | None:
        """Return a snapshot taken after this call; the newest one there is if that takes too long."""
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answered >= ticket or self._stopping, timeout_s)
            return self._snapshot

    def trouble(self) -> str:
        """Return what is wrong with the draining, empty if nothing is."""
        silent_s = (time.monotonic_ns() - self._polled_ns) / 1e9
        if not self._thread.is_alive():
            return "the observer thread has ended"
        if silent_s > STALE_S:
            return f"no ring was read for {silent_s:.0f} s: {self._last_error or 'the poll does not return'}"
        return ""

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            more = self._poll(last=stopping)
            if stopping:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._answered or self._stopping, 0 if more else POLL_S)

    def _poll(self, *, last: bool) -> bool:
        """Drain, hand on what finished, publish if someone asked; tell whether there is more to drain at once."""
        try:
            with self._changed:
                ticket = self._asked
            more = self._watch.poll()
            self._take_steps()
            while last and more:
                more = self._watch.poll()
                self._take_steps()
            if last:
                self._watch.ledger.flush()
                self._take_steps()
            if last or ticket > self._answered:
                self._publish(ticket)
        except Exception as error:  # noqa: BLE001 (the daemon outlives whatever a ring contains)
            if str(error) != self._last_error:
                _log.exception("reading the rings failed; trying again")
            self._last_error = str(error) or type(error).__name__
            return False
        self._polled_ns = time.monotonic_ns()
        self._last_error = ""
        return more

    def _take_steps(self) -> None:
        steps = self._watch.ledger.take_steps()
        if not steps:
            return
        origins = self._origins()
        for step in steps:
            self._cursor += 1
            kept = self._steps.setdefault(step.series, deque(maxlen=KEPT_STEPS))
            kept.append(NumberedStep(self._cursor, step))
            if self._spans.offer(step, origins):
                self._slowest.add(step, origins)

    def _origins(self) -> Mapping[RankKey, SpanOrigin]:
        """Return what spans need to know of each rank, with the anchors as they are now."""
        readers = sorted(self._watch.tail.readers, key=lambda reader: reader.identity.start_time_ns)
        began = _run_begins(reader.identity for reader in readers)
        origins: dict[RankKey, SpanOrigin] = {}
        for reader in readers:  # Of two rings of one rank the younger one counts, as in the watch.
            identity = reader.identity
            resource = self._resources.get(identity)
            if resource is None:
                resource = self._resources[identity] = rank_resource(identity)
            anchor = reader.anchor()
            origins[identity.key] = SpanOrigin(
                resource=resource,
                monotonic_offset_ns=anchor.realtime_ns - anchor.monotonic_ns,
                virtual_offset_ns=began[identity.run_id],
            )
        self._resources = {reader.identity: self._resources[reader.identity] for reader in readers}
        return origins

    def _publish(self, ticket: int) -> None:
        now_ns = time.monotonic_ns()
        ranks = self._rank_states(now_ns)
        facts = _shown(self._watch.ledger.facts(), ranks)
        known = {series.key for series in facts.series}
        self._steps = {key: steps for key, steps in self._steps.items() if key in known}
        snapshot = Snapshot(
            taken_ns=now_ns,
            taken_realtime_ns=time.time_ns(),
            started_realtime_ns=self._started_realtime_ns,
            ranks=ranks,
            facts=facts,
            steps=MappingProxyType({key: tuple(steps) for key, steps in self._steps.items()}),
            cursor=self._cursor,
            problems=MappingProxyType(dict(self._watch.tail.problems)),
            spans=self._spans.statistics(),
            exemplars=MappingProxyType(self._slowest.of({state.key for state in ranks})),
        )
        with self._changed:
            self._snapshot = snapshot
            self._answered = max(self._answered, ticket)
            self._changed.notify_all()

    def _rank_states(self, now_ns: int) -> tuple[RankState, ...]:
        """Return the ranks to show: those whose writer lives, and those gone for a short while only."""
        readers = {reader.path: reader for reader in self._watch.tail.readers}
        statuses = self._watch.ranks()
        began = _run_begins(status.identity for status in statuses)
        down_since: dict[Path, int] = {}
        states = []
        for status in statuses:
            if not status.alive:
                down_since[status.path] = self._down_since.get(status.path, now_ns)
                if now_ns - down_since[status.path] > self._down_shown_ns:
                    continue
            states.append(
                RankState(
                    identity=status.identity,
                    path=status.path,
                    up=status.alive,
                    closed=status.closed,
                    down_since_ns=down_since.get(status.path, 0),
                    statistics=status.statistics,
                    anchor=readers[status.path].anchor(),
                    virtual_offset_ns=began[status.identity.run_id],
                    series=tuple(
                        SeriesWindows(index, info, readers[status.path].windows(index))
                        for index, info in enumerate(status.series)
                    ),
                )
            )
        self._down_since = down_since
        return tuple(states)


def _run_begins(identities: Iterable[RankIdentity]) -> dict[str, int]:
    """Return for each run when the first of its rings was made, UNIX time."""
    begins: dict[str, int] = {}
    for identity in identities:
        begins[identity.run_id] = min(begins.get(identity.run_id, identity.start_time_ns), identity.start_time_ns)
    return begins


def _shown(facts: LedgerFacts, ranks: tuple[RankState, ...]) -> LedgerFacts:
    """Return the facts of the ranks that are shown, and of every series of theirs."""
    keys = {state.key for state in ranks}
    return replace(
        facts,
        ranks=tuple(rank for rank in facts.ranks if rank.identity.key in keys),
        series=tuple(series for series in facts.series if any(rank.rank in keys for rank in series.ranks)),
    )
