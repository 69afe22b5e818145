"""An origin that yields what the ranks of a simulated, possibly faulty run record, as of any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.alignment import Probe
from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankJoined,
    RecordsRead,
    RingsSeen,
    RingState,
    SeriesListed,
)
from swtrace.observing.origin import Link, OriginStatus, Polled
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.marks import Marks, Occupancy, Progress, WindowState
from swtrace.trace.records import STEP, TRANSFER, Records
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import NO_WINDOW, Clock, Collective, Kind, Observed, Stage, TransferFlag, Untimed
from tests.support import faulty_series
from tests.support.faulty_series import NEVER, ORIGIN_NS, Fault, Floats, Run

RUN_ID = "campaign"
UNIX_NS = 10**18
"""UNIX time at true time 0."""
_LAYER_BYTES = 32 << 20
_PROBE_EVERY_NS = 5e9
"""Between two probes of the other hosts' clocks."""


@dataclass(frozen=True)
class _Written:
    """The records of a rank, in the order of writing."""

    records: Records
    at_ns: Floats
    """True time at which each is committed."""
    lost: npt.NDArray[np.bool_]


class FaultyOrigin:
    """The rings of the ranks of a run. Set :attr:`now_ns` before :meth:`poll`.

    Args:
        run: The run.
        fault: What goes wrong in it.
        chance: Random numbers.
        others_end_s: After a rank died, the others close their rings so much later; None if they wait forever.
    """

    def __init__(
        self, run: Run, fault: Fault, chance: np.random.Generator, *, others_end_s: float | None = None
    ) -> None:
        shape = self.shape = run.load.shape
        self.now_ns = ORIGIN_NS
        self._run, self._fault = run, fault
        self._numbers = numbers(run)
        self._clock = _Clocks.drawn(shape, chance)
        self.infos = tuple(_info(run, rank) for rank in range(shape.ranks))
        self.stopped_ns = _stopped_ns(run, fault, chance)
        """True time from which the faulty ranks do nothing more; infinity if they go on."""
        self._others_end_ns = NEVER if others_end_s is None else self.stopped_ns + 1e9 * others_end_s
        self._written = _written(run, fault, self._clock, chance)
        self._read = np.zeros(shape.ranks, np.int64)
        self._chance = chance
        self._probed_ns = -NEVER
        self._joined = False
        self._down_since: dict[int, int] = {}

    @property
    def ends_ns(self) -> float:
        """True time of the last record."""
        return max(float(each.at_ns[-1]) for each in self._written if len(each.at_ns))

    def lost_steps(self) -> set[int]:
        """Return the numbers of the steps that lack a record."""
        return {
            int(step)
            for each in self._written
            for step in np.unique(each.records["step"][each.lost & (each.records["kind"] != Kind.STEP)])
        }

    # -- what an origin does -------------------------------------------------------------------------

    def poll(self, limit: int | None = None) -> Polled:
        """Return the events up to now."""
        del limit
        events: list[Event] = []
        if not self._joined:
            self._joined = True
            for rank, info in enumerate(self.infos):
                identity = self._identity(rank)
                events += [RankJoined(identity), SeriesListed(identity.key, (info,))]
        batches: list[tuple[RankKey, Records]] = []
        for rank, written in enumerate(self._written):
            until = self._committed(rank)
            fresh = slice(int(self._read[rank]), until)
            kept = written.records[fresh][~written.lost[fresh]]
            self._read[rank] = until
            if len(kept):
                batches.append((RankKey(RUN_ID, rank), kept))
        if batches:
            events.append(RecordsRead(tuple(batches)))
        for rank in range(self.shape.ranks):
            if not self._alive(rank) and rank not in self._down_since:
                self._down_since[rank] = self._clock.one(rank, self.now_ns)
                events.append(RankEnded(RankKey(RUN_ID, rank)))
        return Polled((*self._probes(), *events), more=False)

    def _probes(self) -> Iterator[ClockProbed]:
        """Yield what a daemon on the first host measured about the clocks of the others."""
        if self.now_ns < self._probed_ns + _PROBE_EVERY_NS:
            return
        self._probed_ns = self.now_ns
        hosts = self.shape.host.tolist()
        for rank in [hosts.index(host) for host in sorted(set(hosts) - {hosts[0]})]:
            took = self._chance.uniform(100_000, 400_000)
            asked, by = self._identity(rank).clock, self._identity(0).clock
            at = self._clock.one(rank, self.now_ns - took * self._chance.uniform(0.3, 0.7))
            began, ended = (self._clock.one(0, each) for each in (self.now_ns - took, self.now_ns))
            yield ClockProbed(Probe(asked, by, at, began, ended))

    @property
    def problems(self) -> Mapping[str, str]:
        """Return no problem."""
        return {}

    def look(self) -> RingsSeen:
        """Return the state of all rings as of now."""
        return RingsSeen(tuple(self._ring(rank) for rank in range(self.shape.ranks)))

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the anchors of all ranks."""
        return {RankKey(RUN_ID, rank): self._anchor(rank) for rank in range(self.shape.ranks)}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Fail, because no simulated rank may be refused."""
        raise AssertionError(f"{rank}: {why}")

    def status(self) -> tuple[OriginStatus, ...]:
        """Return that the origin is live."""
        return (OriginStatus("simulated", Link.LIVE),)

    def close(self) -> None:
        """Do nothing."""

    # -- how -----------------------------------------------------------------------------------------

    def _identity(self, rank: int) -> RankIdentity:
        host = int(self.shape.host[rank])
        return RankIdentity(
            run_id=RUN_ID,
            rank=rank,
            host=f"host-{host}",
            boot_id=f"boot-{host}",
            pid=1000 + rank,
            start_time_ns=UNIX_NS + int(ORIGIN_NS) - 10**9,
        )

    def _committed(self, rank: int) -> int:
        return int(np.searchsorted(self._written[rank].at_ns, self.now_ns, side="right"))

    def _alive(self, rank: int) -> bool:
        if self._fault.kind is not faulty_series.Kind.DEAD:
            return True
        return self.now_ns < (self.stopped_ns if rank in self._fault.ranks else self._others_end_ns)

    def _anchor(self, rank: int) -> ClockAnchor:
        return ClockAnchor(self._clock.one(rank, self.now_ns), UNIX_NS + round(self.now_ns))

    def _ring(self, rank: int) -> RingState:
        written = int(self._read[rank])
        lost = int(self._written[rank].lost[:written].sum())
        lapped, damaged = (0, lost) if self._fault.damaged else (lost, 0)
        alive = self._alive(rank)
        return RingState(
            rank=RankKey(RUN_ID, rank),
            alive=alive,
            closed=not alive and rank not in self._fault.ranks,
            statistics=RingStatistics(written, written - lost, lapped, damaged, 0),
            anchor=self._anchor(rank),
            windows=(self._windows(rank),),
            marks=self._marks(rank),
            taken_ns=self._clock.one(rank, self.now_ns),
            down_since_ns=self._down_since.get(rank, 0),
        )

    def _seen_ns(self, rank: int) -> float:
        """Return the true time as of which a rank's marks and windows are shown: until it stops."""
        dead = self._fault.kind is faulty_series.Kind.DEAD and rank in self._fault.ranks
        return min(self.now_ns, self.stopped_ns) if dead else self.now_ns

    def _marks(self, rank: int) -> Marks:
        """Return what a rank's host does."""
        run, now, layers = self._run, self._seen_ns(rank), self.shape.layers
        began = int(np.searchsorted(run.begin[:, rank], now, side="right"))
        ended = int(np.searchsorted(run.end[:, rank], now, side="right"))
        instants = [run.begin[began - 1, rank]] if began else []
        if ended and began == ended:
            instants.append(run.end[ended - 1, rank])
        reached = run.reach
        if self.shape.device:
            reached = run.begin[:, np.newaxis] + run.load.launch
        issued = int(np.searchsorted(reached[:, :, rank].reshape(-1), now, side="right"))
        waiting, waiting_since = -1, 0
        if issued:
            step, position = divmod(issued - 1, layers)
            instants.append(reached[step, position, rank])
            if not self.shape.device and began > ended:
                begun, ready, over = (each[began - 1, :, rank] for each in (run.wait_begin, run.ready, run.wait_end))
                held = np.flatnonzero((begun <= now) & (now < over) & (ready > begun))
                if len(held):
                    waiting, waiting_since = int(held[0]), self._clock.one(rank, float(begun[held[0]]))
                passed = over[(over <= now) & (ready > begun)]
                instants += [float(passed[-1])] if len(passed) else []
        before = int(self._numbers[began - 1] - began + 1) * layers if began else 0
        fault = self._fault
        if fault.restarted and fault.strength and rank in fault.ranks and began > fault.begin:
            before -= int(self._numbers[fault.begin]) * layers
        progress = Progress(
            issued=issued + before,
            stage=Stage.BETWEEN if began == ended else Stage.MARKED if issued > (began - 1) * layers else Stage.BEGUN,
            since_ns=self._clock.one(rank, max(instants)) if instants else 0,
            waiting=waiting,
            waiting_since_ns=waiting_since,
        )
        if self.shape.device:
            if began > ended and now >= run.begin[began - 1, rank] + 1.05 * run.load.launch[began - 1, -1, rank]:
                progress = progress._replace(stage=Stage.BETWEEN)
            at = self._clock.one(rank, now if began == ended else float(run.end[ended - 1, rank])) if ended else 0
            progress = progress._replace(completed=int(self._numbers[ended - 1]) + 1 if ended else 0, completed_ns=at)
        since = self._collective_ns(rank)
        if since > self.now_ns:
            return Marks((progress,))
        return Marks((progress,), Collective.ALL_REDUCE, self._clock.one(rank, since))

    def _collective_ns(self, rank: int) -> float:
        """Return since when a rank is in a collective of the program; infinity if it will be in none."""
        fault = self._fault
        alone = fault.stage == "collective" and rank in fault.ranks
        if fault.kind is not faulty_series.Kind.HUNG or not (
            alone or (fault.stage == "peers" and rank not in fault.ranks)
        ):
            return NEVER
        reached = (
            self._run.wait_end[fault.begin, fault.position - 1] if fault.position else self._run.begin[fault.begin]
        )
        return self.stopped_ns if alone else max(self.stopped_ns, float(reached[rank]))

    def _windows(self, rank: int) -> tuple[WindowState, ...]:
        """Return the states of a rank's windows: what was issued into each of them last."""
        run, shape, now = self._run, self.shape, self._seen_ns(rank)
        layers, count = shape.layers, shape.prefetch_step + 1
        issued = run.issued[:, :, rank].reshape(-1)
        newest = int(np.searchsorted(issued, now, side="right")) - 1
        states: dict[int, WindowState] = {}
        for at in range(newest, max(-1, newest - 2 * (count + shape.ranks)), -1):
            step, position = divmod(at, layers)
            window = position % count
            if window in states or position % shape.ranks == rank or not np.isfinite(issued[at]):
                continue
            instants = [issued[at], run.ready[step, position, rank], run.wait_end[step, position, rank]]
            shown = [self._clock.one(rank, each) if each <= now else 0 for each in instants]
            state = Occupancy.IN_USE if shown[2] else Occupancy.READY if shown[1] else Occupancy.INFLIGHT
            issued_ns, ready_ns, in_use_ns = shown
            since_ns = in_use_ns or ready_ns or issued_ns
            number = int(self._numbers[step])
            states[window] = WindowState(window, state, number, position, issued_ns, ready_ns, in_use_ns, since_ns)
            if len(states) == count:
                break
        return tuple(
            states.get(window, WindowState(window, Occupancy.FREE, 0, 0, 0, 0, 0, 0)) for window in range(count)
        )


@dataclass(frozen=True)
class _Clocks:
    """CLOCK_MONOTONIC of each rank's host."""

    offset: Floats
    """``[rank]``"""
    drift: Floats

    @classmethod
    def drawn(cls, shape: faulty_series.Shape, chance: np.random.Generator) -> _Clocks:
        offset, drift = chance.uniform(0, 1e14, shape.hosts), chance.normal(0, 2e-5, shape.hosts)
        return cls(offset[shape.host], drift[shape.host])

    def shown(self, true_ns: Floats) -> npt.NDArray[np.int64]:
        """Return what the clocks show at finite instants, whose last axis is the rank; 0 for the others."""
        known = np.where(np.isfinite(true_ns), true_ns, 0)
        shown = known + self.offset + (known - ORIGIN_NS) * self.drift
        return np.where(np.isfinite(true_ns), shown, 0).astype(np.int64)

    def one(self, rank: int, true_ns: float) -> int:
        """Return what the clock of a rank shows."""
        return int(true_ns + self.offset[rank] + (true_ns - ORIGIN_NS) * self.drift[rank])


def numbers(run: Run) -> npt.NDArray[np.int64]:
    """Return the numbers of the simulated steps, ``[step]``, with untimed steps between them."""
    return np.arange(run.load.shape.steps) + np.cumsum(run.load.skipped)


def _info(run: Run, rank: int) -> SeriesInfo:
    shape = run.load.shape
    return SeriesInfo(
        name="o_proj",
        start_layer=0,
        stack_layers=shape.layers,
        layers=tuple(range(shape.layers)),
        prefetch_step=shape.prefetch_step,
        windows="static",
        window_count=shape.prefetch_step + 1,
        group_ranks=tuple(range(shape.ranks)),
        rank_in_group=rank,
        transport="nccl" if shape.device else "gloo",
        rendezvous=shape.rendezvous,
        clock="device" if shape.device else "host",
        layer_bytes=_LAYER_BYTES,
        owned_layers=int((shape.source == rank).sum()),
        queue=shape.queue,
    )


def _stopped_ns(run: Run, fault: Fault, chance: np.random.Generator) -> float:
    """Return when the faulty rank stops."""
    if fault.kind not in faulty_series.FINAL or not fault.strength:
        return NEVER
    if fault.stage == "entry" and not fault.begin:
        raise ValueError("a rank that stops before a step has run one")
    rank, step = fault.ranks[0], fault.begin
    if fault.stage == "entry":
        return float(run.end[step - 1, rank]) + float(run.load.gap[step - 1, rank])
    since = run.wait_end[step, fault.position - 1, rank] if fault.position else run.begin[step, rank]
    return float(since) + run.load.shape.compute_ns * chance.uniform(0.05, 0.6)


def _written(run: Run, fault: Fault, clock: _Clocks, chance: np.random.Generator) -> list[_Written]:
    """Return what each rank writes."""
    load, shape = run.load, run.load.shape
    steps, layers, ranks, ahead = shape.steps, shape.layers, shape.ranks, load.ahead
    number = numbers(run)
    own = np.broadcast_to((np.arange(ranks) == shape.source[:, np.newaxis])[np.newaxis], run.ready.shape)
    prefilled = ~np.isfinite(run.issued) & (np.arange(steps) == 0)[:, np.newaxis, np.newaxis]
    # The broadcasts that cross untimed steps were issued in the last of them.
    late = np.where(np.arange(layers) < ahead, load.jump[:, np.newaxis], 0.0)[:, :, np.newaxis]
    noise = 0.0 if shape.device else chance.exponential(15_000, run.ready.shape)
    with np.errstate(invalid="ignore"):
        ready = np.minimum(run.ready + late + noise, run.wait_end)
        issued = np.where(prefilled, run.wait_begin, np.minimum(run.issued + late, run.wait_begin))
    ready = np.where(own, NEVER, np.where(prefilled, run.wait_begin, np.maximum(ready, issued)))
    wait_end = np.where(prefilled, run.wait_begin, run.wait_end)

    transfers = np.zeros((steps, layers, ranks), TRANSFER)
    transfers["kind"] = Kind.TRANSFER
    observed, clock_of = (Observed.EVENT, Clock.DEVICE) if shape.device else (Observed.CALLBACK, Clock.HOST)
    transfers["observed_clock"] = np.where(own, Observed.NEVER, observed) | (clock_of << 4)
    for name, instants in (
        ("issued_ns", issued),
        ("ready_ns", ready),
        ("wait_begin_ns", run.wait_begin),
        ("wait_end_ns", wait_end),
    ):
        transfers[name] = clock.shown(instants)
    position = np.arange(layers)
    transfers["step"] = number[:, np.newaxis, np.newaxis]
    operation = number[:, np.newaxis] * layers + position - ahead
    transfers["operation"] = np.maximum(0, operation)[:, :, np.newaxis]
    transfers["position"] = position[:, np.newaxis]
    transfers["reach_position"] = ((position - ahead) % layers)[:, np.newaxis]
    transfers["source"] = shape.source[:, np.newaxis]
    transfers["window"] = np.where(own, NO_WINDOW, (position % (shape.prefetch_step + 1))[:, np.newaxis])
    transfers["flags"] = (
        np.where(own, TransferFlag.OWN, 0)
        | np.where(prefilled, TransferFlag.PREFILLED, 0)
        | np.where(position < ahead, TransferFlag.CROSSES_STEPS, 0)[:, np.newaxis]
    )
    ends = _step_records(run, clock)
    untimed = _untimed(run, clock) if load.skipped.any() else None
    lost = _lost(fault, transfers.shape, chance)
    launched = clock.shown(run.launched)
    of_ranks = []
    for rank in range(ranks):
        mine = transfers[:, :, rank].reshape(-1), run.wait_end[:, :, rank].reshape(-1), lost[:, :-1, rank].reshape(-1)
        parts = [mine, (ends[:, rank], run.end[:, rank], lost[:, -1, rank])]
        if shape.device:
            parts.append(_launches(*mine, launched[:, :, rank].reshape(-1)))
        if untimed is not None:
            parts.append((untimed[0][:, rank], untimed[1][:, rank], np.zeros(len(untimed[0]), np.bool_)))
        records, when, missing = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(when, kind="stable")
        order = order[np.isfinite(when[order])]
        records = records[order]
        if fault.kind is faulty_series.Kind.DIVERGED and fault.strength and rank in fault.ranks:
            since = int(number[fault.begin])
            _renumber(records, since, since if fault.restarted else 0, layers)
        records["sequence"] = 1 + np.arange(len(records))
        of_ranks.append(_Written(records, when[order], missing[order]))
    return of_ranks


def _launches(
    transfers: Records, at_ns: Floats, lost: npt.NDArray[np.bool_], launched: npt.NDArray[np.int64]
) -> tuple[Records, Floats, npt.NDArray[np.bool_]]:
    """Return the LAUNCH records of a rank's waits that stalled, when each is written, and which are lost."""
    stalled = (transfers["ready_ns"] > transfers["wait_begin_ns"]) & (launched > 0)
    records = transfers[stalled]
    records["kind"], records["issued_ns"] = Kind.LAUNCH, launched[stalled]
    records["ready_ns"] = records["wait_end_ns"] = 0
    return records, at_ns[stalled] + 1, lost[stalled]


def _renumber(records: Records, since: int, fewer: int, layers: int) -> None:
    """Give a rank's steps from one on other numbers: as if it had skipped that one, or had begun again.

    Args:
        records: What the rank writes.
        since: Number of that step.
        fewer: How many steps it had run before it began again; 0 if it skips one.
        layers: Broadcasts of a step.
    """
    of_step = records["kind"] == Kind.STEP
    steps = records.view(STEP)
    later = np.where(of_step, steps["step"], records["step"]) >= since
    transfers = later & ~of_step
    by = -fewer if fewer else 1
    records["step"][transfers] = records["step"][transfers].astype(np.int64) + by
    steps["step"][later & of_step] = steps["step"][later & of_step].astype(np.int64) + by
    operations = records["operation"][transfers].astype(np.int64) - fewer * layers
    records["operation"][transfers] = np.maximum(0, operations)


def _step_records(run: Run, clock: _Clocks) -> Records:
    """Return the STEP records of the simulated steps, ``[step, rank]``."""
    load, shape = run.load, run.load.shape
    records = np.zeros((shape.steps, shape.ranks), STEP)
    records["kind"] = Kind.STEP
    for name, instants in (("begin_ns", run.begin), ("arrival_ns", run.reach[:, 0]), ("end_ns", run.end)):
        records[name] = clock.shown(instants)
    records["step"] = numbers(run)[:, np.newaxis]
    records["tokens"], records["requests"] = load.tokens, np.minimum(load.tokens, 32)
    records["phase"], records["waits"] = load.phase[:, np.newaxis], shape.layers
    records["run_delay_us"] = load.run_delay / 1e3
    # The kernel counts it over all processors of the host.
    records["steal_us"] = load.steal @ (shape.host[:, np.newaxis] == shape.host) / 1e3
    return records.view(TRANSFER)


def _untimed(run: Run, clock: _Clocks) -> tuple[Records, Floats]:
    """Return the STEP records of the untimed steps, ``[step, rank]``, and when they are written."""
    load, shape = run.load, run.load.shape
    before = np.repeat(np.arange(shape.steps), load.skipped)
    first = np.flatnonzero(load.skipped)
    which = np.arange(len(before)) - np.repeat(
        np.cumsum(load.skipped[first]) - load.skipped[first], load.skipped[first]
    )
    count = load.skipped[before]
    since = (run.end[before - 1] if len(before) else run.end[:0]) + 0.0
    share = load.jump[before] / count
    begin = since + (which * share)[:, np.newaxis]
    end = begin + 0.92 * share[:, np.newaxis]
    records = np.zeros(begin.shape, STEP)
    records["kind"], records["untimed"] = Kind.STEP, Untimed.SAMPLED
    if not shape.device:
        for name, instants in (("begin_ns", begin), ("arrival_ns", begin), ("end_ns", end)):
            records[name] = clock.shown(instants)
    records["step"] = (numbers(run)[before] - count + which)[:, np.newaxis]
    records["tokens"], records["phase"], records["waits"] = 32, load.phase[before][:, np.newaxis], shape.layers
    return records.view(TRANSFER), end


def _lost(fault: Fault, shape: tuple[int, int, int], chance: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which TRANSFER and, at the last position, STEP records are lost, ``[step, position, rank]``."""
    steps, layers, ranks = shape
    lost = np.zeros((steps, layers + 1, ranks), np.bool_)
    if fault.kind is not faulty_series.Kind.LOST:
        return lost
    for rank in fault.ranks:
        if fault.damaged:
            lost[fault.begin :, :, rank] = chance.random((steps - fault.begin, layers + 1)) < fault.strength / layers
            continue
        # The reader falls behind in some intervals, and the ring laps it.
        of_rank = np.zeros(steps * (layers + 1), np.bool_)
        at = fault.begin * (layers + 1)
        while at < len(of_rank):
            length = round(chance.uniform(0.5, 1.5) * fault.strength * 40 * (layers + 1))
            at += round(chance.uniform(0, 40 * (layers + 1)))
            of_rank[at : at + length] = True
            at += length + round(chance.uniform(0, 20 * (layers + 1)))
        lost[:, :, rank] = of_rank.reshape(steps, layers + 1)
    return lost
