"""The observer thread: drains its origin, numbers finished steps and publishes snapshots.

Only this thread touches the origin and the ledger. HTTP handlers ask for a snapshot and get one that was taken after
they asked, or none; an old one is never served as if it were new. A scrape sees everything that was committed before
it. If the daemon is too far behind to read all that in time, the snapshot says so. The thread keeps draining while
handlers wait and render. No exception ends the thread: it is logged and counted, ``/healthz`` reports it, and the
next poll tries again.
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
from swtrace.daemon.snapshot import Health, NumberedStep, Snapshot
from swtrace.observing import Roster
from swtrace.spans.origins import RankOrigins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swtrace.daemon.daemon_settings import Watched
    from swtrace.ledger.facts import SeriesKey
    from swtrace.observing import Observation, Origin
    from swtrace.spans.delivery import SpanSink

_log = logging.getLogger(__name__)

POLL_S = 0.25
"""Interval between polls, unless there is more to read at once. A ring of default size lasts for 21 s or more and
every request polls anyway, so this only bounds how long finished steps wait for their export."""
DOWN_SHOWN_S = 300.0
"""How long a rank stays in snapshots after its writer is gone, so that several scrapes see it down."""
KEPT_STEPS = 64
"""Finished steps kept for the API, per series; in a pull series, per rank."""
STALE_S = 5.0
"""After this long without a successful poll the daemon is unhealthy. It also limits the wait for a snapshot."""
CATCH_UP_S = 1.0
"""Most time that a request may spend on reading earlier records. The snapshot reports how many remain."""
SAID_PROBLEMS = 20
"""Unreadable rings that are logged one by one. Further ones are logged as a number; the API names them all."""


class Observer:
    """Reads an origin in its own thread: the rings of this host, or other daemons."""

    def __init__(
        self,
        origin: Origin,
        spans: SpanSink,
        *,
        watched: Watched | None = None,
        down_shown_s: float = DOWN_SHOWN_S,
    ) -> None:
        """Take over the origin. Nothing else may touch it until :meth:`stop` has returned."""
        self._watched = watched
        self._origin = origin
        self._roster = Roster(origin, keep_steps=True)
        self._spans = spans
        self._down_shown_ns = round(down_shown_s * 1e9)
        self._origins = RankOrigins()
        self._steps: dict[tuple[SeriesKey, int | None], deque[NumberedStep]] = {}
        self._slowest = SlowestWaits()
        self._started_realtime_ns = time.time_ns()
        self._cursor = 0
        self._changed = threading.Condition()
        self._asked = 0
        self._answered = 0
        self._snapshot: Snapshot | None = None
        self._stopping = False
        self._drained = False
        self._streams_end = False
        self._polled_ns = time.monotonic_ns()
        self._polled_realtime_ns = self._started_realtime_ns
        self._poll_errors = 0
        self._last_error = ""
        self._logged_errors: set[str] = set()
        self._problems: Mapping[str, str] = {}
        self._unseen = ""
        self._thread = threading.Thread(target=self._run, name="swtrace-observer", daemon=True)

    @property
    def streaming(self) -> bool:
        """Whether streams of records may continue."""
        return not (self._streams_end or self._stopping)

    def end_streams(self) -> None:
        """End all streams of records, because the server waits for them before it stops. Safe in a signal handler."""
        self._streams_end = True

    def start(self) -> None:
        """Find the rings that exist now, so that everything written after this call is counted, and start draining."""
        self._poll(last=False)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Drain once more, finish and export all pending steps, and end the thread. Return False on timeout."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def snapshot(self) -> Snapshot | None:
        """Return a snapshot taken after this call, or the last one if the observer has stopped.

        None if there is none in time; :meth:`health` gives the reason.
        """
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            answered = self._changed.wait_for(lambda: self._answered >= ticket or self._drained, STALE_S)
            return self._snapshot if answered else None

    def health(self) -> Health:
        """Return whether reading the rings works."""
        return Health(self._problem(), self._polled_realtime_ns, self._poll_errors)

    def _problem(self) -> str:
        silent_s = (time.monotonic_ns() - self._polled_ns) / 1e9
        if not (self._thread.is_alive() or self._drained):
            return "the observer thread has ended"
        if self._last_error:
            return f"cannot read the rings: {self._last_error}"
        if silent_s > STALE_S:
            return f"no ring was read for {silent_s:.0f} s because the poll has not returned"
        return self._unseen

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            more = self._poll(last=stopping)
            if stopping:
                with self._changed:
                    self._drained = True
                    self._changed.notify_all()
                return
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._answered or self._stopping, 0 if more else POLL_S)

    def _poll(self, *, last: bool) -> bool:
        """Drain, export finished steps, and publish if asked. Return whether there is more to drain at once."""
        with self._changed:
            ticket = self._asked
        try:
            more = self._roster.poll()
            self._take_steps()
            give_up_s = time.monotonic() + CATCH_UP_S
            while more and (last or (ticket > self._answered and time.monotonic() < give_up_s)):
                more = self._roster.poll()
                self._take_steps()
            self._log_problems()
            if last:
                self._roster.ledger.flush()
                self._take_steps()
            if last or ticket > self._answered:
                self._publish(ticket)
        except Exception as error:  # noqa: BLE001 (the daemon must survive anything a ring contains)
            self._fail(ticket, str(error) or type(error).__name__)
            return False
        self._polled_ns, self._polled_realtime_ns = time.monotonic_ns(), time.time_ns()
        self._last_error = ""
        return more

    def _fail(self, ticket: int, error: str) -> None:
        """Count and log a failed poll, and answer requests without a snapshot, because the last one is outdated."""
        if error not in self._logged_errors:
            self._logged_errors.add(error)
            _log.exception("cannot read the rings; trying again")
        with self._changed:
            self._poll_errors += 1
            self._last_error = error
            self._snapshot = None
            self._answered = max(self._answered, ticket)
            self._changed.notify_all()

    def _log_problems(self) -> None:
        """Log each problem once, and once when it is gone."""
        problems = self._origin.problems
        new = [text for path, text in sorted(problems.items()) if self._problems.get(path) != text]
        for text in new[:SAID_PROBLEMS]:
            _log.warning("%s", text)
        if len(new) > SAID_PROBLEMS:
            _log.warning("%d more rings cannot be read: see /api/v1/health", len(new) - SAID_PROBLEMS)
        gone = sorted(self._problems.keys() - problems.keys())
        if gone:
            more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
            _log.warning("%s: no longer a problem%s", gone[0], more)
        self._problems = problems
        whole = [problems.get(origin.name, "") for origin in self._origin.status()]
        self._unseen = next(iter(whole), "") if all(whole) else ""

    def _take_steps(self) -> None:
        steps = self._roster.take_steps()
        if not steps:
            return
        origins = self._origins.of(self._roster.identities.values(), self._origin.anchors())
        for step in steps:
            self._cursor += 1
            kept = self._steps.setdefault((step.series, step.of_rank), deque(maxlen=KEPT_STEPS))
            if kept and step.step <= kept[-1].step.step:
                kept.clear()  # The group, or the rank of a pull series, was restarted.
            kept.append(NumberedStep(self._cursor, step))
            if self._roster.ledger.counts(step) and self._spans.offer(step, origins):
                self._slowest.add(step, origins)

    def _publish(self, ticket: int) -> None:
        observation = self._shown(self._roster.observe())
        known = {series.key for series in observation.facts.series}
        self._steps = {key: steps for key, steps in self._steps.items() if key[0] in known}
        snapshot = Snapshot(
            observation=observation,
            taken_realtime_ns=time.time_ns(),
            started_realtime_ns=self._started_realtime_ns,
            steps=MappingProxyType({key: tuple(steps) for key, steps in self._steps.items()}),
            cursor=self._cursor,
            spans=self._spans.statistics(),
            watched=self._watched,
            exemplars=MappingProxyType(self._slowest.of({rank.key for rank in observation.ranks})),
        )
        with self._changed:
            self._snapshot = snapshot
            self._answered = max(self._answered, ticket)
            self._changed.notify_all()

    def _shown(self, observation: Observation) -> Observation:
        """Return the observation with only the ranks whose writer is alive or has been gone for a short time."""
        ranks = tuple(
            rank
            for rank in observation.ranks
            if rank.ring.alive or rank.ring.taken_ns - rank.ring.down_since_ns <= self._down_shown_ns
        )
        keys = {rank.key for rank in ranks}
        facts = replace(
            observation.facts,
            ranks=tuple(rank for rank in observation.facts.ranks if rank.identity.key in keys),
            series=tuple(
                series for series in observation.facts.series if any(rank.rank in keys for rank in series.ranks)
            ),
        )
        return replace(observation, ranks=ranks, facts=facts)
