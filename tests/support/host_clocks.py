"""Put the ranks of a simulated schedule on the clocks of several hosts, whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from opentelemetry.sdk.resources import Resource

from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.spans.origins import SpanOrigin
from swtrace.trace.identity import RankIdentity, RankKey
from swtrace.trace.records import STEP, Records
from swtrace.trace.schema import Kind
from tests.support import feeding
from tests.support.schedules import Schedule, key

HOUR_NS = 3600 * 10**9
UNIX_NS = 10**18
"""UNIX time at the schedule's time 0."""


@dataclass(frozen=True)
class HostClock:
    """A host's CLOCK_MONOTONIC, as a function of the schedule's time."""

    offset_ns: int = 0
    drift: float = 0.0
    """Seconds that it gains per second."""
    set_at_ns: int = 1 << 62
    """When it is set to another time, for example because the host was suspended, ..."""
    set_by_ns: int = 0
    """... and by how much."""
    wall_ahead_ns: int = 0
    """By how much the host's UNIX time is wrong."""

    def at(self, true_ns: int) -> int:
        """Return what the clock shows."""
        return int(self.shown(np.array([true_ns], np.int64))[0])

    def shown(self, true_ns: np.ndarray) -> np.ndarray:
        """Return what the clock shows at many instants. Instants that are 0 are unknown."""
        gained = np.rint(true_ns * self.drift).astype(np.int64)
        set_by = np.where(true_ns >= self.set_at_ns, self.set_by_ns, 0)
        return np.where(true_ns > 0, true_ns + self.offset_ns + gained + set_by, 0)


def on_clock(records: Records, clock: HostClock) -> Records:
    """Return a rank's records with all instants as a clock shows them."""
    records = records.copy()
    steps = records["kind"] == Kind.STEP
    for column in ("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns"):
        records[column][~steps] = clock.shown(records[column][~steps])
    for column in ("begin_ns", "arrival_ns", "end_ns"):
        view = records.view(STEP)[column]
        view[steps] = clock.shown(view[steps])
    return records


@dataclass(frozen=True)
class Hosts:
    """A schedule whose ranks are on hosts with clocks of their own."""

    schedule: Schedule
    host: Sequence[int]
    """By rank."""
    clocks: Sequence[HostClock]
    """By host."""

    def identity(self, rank: int) -> RankIdentity:
        """Return the identity of a rank on its host."""
        host = self.host[rank]
        return replace(self.schedule.identity(rank), host=f"host-{host}", boot_id=f"boot-{host}")

    def origins(self, at_ns: int) -> dict[RankKey, SpanOrigin]:
        """Return what the ranks' rings say at an instant of the schedule about the offset to UNIX time."""
        offsets = [UNIX_NS + at_ns + clock.wall_ahead_ns - clock.at(at_ns) for clock in self.clocks]
        return {
            key(rank): SpanOrigin(Resource({"rank": rank}), offsets[host], 0) for rank, host in enumerate(self.host)
        }

    def seen(self) -> Schedule:
        """Return what the ranks record."""
        records = [on_clock(mine, self.clocks[self.host[rank]]) for rank, mine in enumerate(self.schedule.records)]
        return Schedule(self.schedule.infos, records, self.schedule.operations)

    def ledger(self) -> Ledger:
        """Return a ledger that knows the ranks but has no record."""
        ledger = Ledger(keep_untaken=1 << 16)
        for rank, info in enumerate(self.schedule.infos):
            ledger.add_rank(self.identity(rank))
            ledger.set_series(key(rank), (info,))
        return ledger

    def fed(self) -> Ledger:
        """Return a ledger with all records."""
        ledger = self.ledger()
        feeding.feed(ledger, self.seen())
        return ledger

    def errors_ns(self, step: StepFacts, truth: StepFacts, rank: int) -> tuple[int, int]:
        """Return by how much a rank's clock is misplaced at the begin and at the end of a step."""
        reference, mine = self.clocks[self.host[0]], self.clocks[self.host[rank]]
        shift = int(step.clock_shift_ns[rank])
        begin, end = (
            shift - (reference.at(int(ns[rank])) - mine.at(int(ns[rank]))) for ns in (truth.begin_ns, truth.end_ns)
        )
        return begin, end


def true_steps(schedule: Schedule) -> tuple[StepFacts, ...]:
    """Return the steps as one clock would show them."""
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    return ledger.take_steps()
