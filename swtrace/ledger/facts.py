"""The facts of a ledger, as frozen data. Integers are nanoseconds; ratios are floats in [0, 1].

Arrays are indexed ``[group rank, position]`` or ``[group rank]``. ``docs/concepts.md`` defines the terms, and
:mod:`swtrace.ledger.step` computes the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from swtrace.ledger.alignment import AlignedClock
from swtrace.ledger.requests import Links
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo, Terms
from swtrace.trace.schema import Phase, StepFlag

Nanoseconds = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Cause(StrEnum):
    """Proximate causes of parts of a stall, in the order in which the parts follow each other."""

    ENTRY_SKEW = "entry_skew"
    """A peer entered the step later: the imbalance comes from outside the series."""
    SKEW = "skew"
    """A peer issued the broadcast later than this rank did."""
    BACKLOG = "backlog"
    """The delivery queued behind what the channel carried before."""
    TRANSFER = "transfer"
    """The bytes were moving."""
    UNATTRIBUTED = "unattributed"
    """The cause is unknown: the peers' records are lost or on a host that this ledger does not read, the ranks' clocks
    cannot be aligned, the bound of their clocks leaves it open, or the ready instant of the previous delivery was not
    observed."""


CAUSES = tuple(Cause)

TRANSFER_BOUND_SHARE = 0.2
"""Efficiency and bandwidth are stated only if their transfers are known this well in sum."""


class Outcome(StrEnum):
    """Outcome of a wait."""

    ON_TIME = "on_time"
    STALLED = "stalled"
    OWN = "own"
    """The rank is the layer's source: nothing to wait for. Not part of the on-time rate."""
    PREFILLED = "prefilled"
    """First step, first k layers: the window was filled at post-processing. Not part of the on-time rate."""
    UNTIMED = "untimed"
    """Any wait of an untimed step: whether it stalled is unknown. Not part of the on-time rate."""


class SeriesKey(NamedTuple):
    """Identity of a series across ranks. Pipeline stages share a name and differ in ``start_layer``."""

    run_id: str
    name: str
    start_layer: int
    group_ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """One step's critical path, walked back from the end of the rank that ended last."""

    last_rank: int
    """Group rank whose end is the end of the step."""
    compute_ns: Nanoseconds
    """``[rank]``: compute of this rank that lies on the path."""
    excess_ns: Nanoseconds
    """``[rank]``: how much longer this compute took than the other ranks' median for the same stretches; may be
    negative."""
    entry_ns: Nanoseconds
    """``[rank]``: how long after the first rank the path's first rank entered the step; 0 for others."""
    entry_bound_ns: int
    """Largest error of that by the alignment of clocks; 0 on one clock."""
    transfer_ns: int
    wake_ns: int
    length_ns: int
    """First arrival to last end: the sum of all parts."""


class StepColumns(Protocol):
    """Finished steps of one series, as columns that are computed on access."""

    @property
    def sums(self) -> Nanoseconds:
        """``[row, step, rank]``: sums over positions (:mod:`swtrace.ledger.recent`)."""

    def fact(self, name: str, row: int) -> Any:
        """Return a field of one step's facts."""


class _LazyFacts:
    """Facts that are read from columns on first access."""

    __slots__ = ("columns", "row")

    columns: StepColumns
    row: int

    @property
    def summed(self) -> Nanoseconds | None:
        """``[row, rank]``: sums over positions; None if the facts have no columns."""
        return self.columns.sums[:, self.row] if hasattr(self, "columns") else None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Read a field that has no value yet from the columns."""
            if name not in self.__dataclass_fields__:
                raise AttributeError(name)
            value = self.columns.fact(name, self.row)
            object.__setattr__(self, name, value)
            return value


@dataclass(frozen=True, slots=True)
class StepFacts(_LazyFacts):
    """One finished step of one series, on all ranks whose records are available.

    A rank that left the step untimed has no record here and counts as not ended. In a pull series, a step belongs to
    one rank. All other ranks then have no record of it, whatever they did at the time.
    """

    series: SeriesKey
    step: int
    ranks: tuple[RankKey, ...]
    """By group rank."""
    infos: tuple[SeriesInfo | None, ...]
    """By group rank; None for a rank that this ledger never saw."""
    hosts: tuple[str, ...]
    """Host names by group rank; empty for a rank that this ledger never saw."""
    present: Mask
    """``[rank, position]``: a record is available."""
    ended: Mask
    """``[rank]``: the step record is available."""
    complete: bool
    """Every rank that runs the step ended it, and all their records are available."""

    issued_ns: Nanoseconds
    ready_ns: Nanoseconds
    wait_begin_ns: Nanoseconds
    wait_end_ns: Nanoseconds
    observed: npt.NDArray[np.uint8]
    clock: npt.NDArray[np.uint8]
    launched_ns: Nanoseconds
    """``[rank, position]``: when the host launched the issue of a wait that stalled on a device; 0 where unknown."""
    flags: npt.NDArray[np.uint8]
    window: npt.NDArray[np.uint16]
    reach_position: npt.NDArray[np.uint16]
    source: npt.NDArray[np.uint16]
    """``[position]``: group rank that stores the layer."""
    layers: tuple[int, ...]
    """``[position]``: absolute index of the layer."""

    receiver: Mask
    """``[rank, position]``: a wait that counts for stall, on-time rate and efficiency."""
    stall_ns: Nanoseconds
    wake_ns: Nanoseconds
    slack_ns: Nanoseconds
    on_time: Mask
    attributed: Mask
    """``[rank, position]``: last issue, backlog and transfer are known."""
    last_issue_ns: Nanoseconds
    late_rank: npt.NDArray[np.int32]
    """Group rank that issued last; -1 where unknown, also if the bound of two ranks' clocks leaves it open."""
    backlog_ns: Nanoseconds
    transfer_ns: Nanoseconds
    """This receiver's own time on the channel, up to ``ready_ns``. Time shared by deliveries to it counts once."""
    transfer_bound_ns: Nanoseconds
    """Largest error of that by the alignment of clocks; 0 where one clock timed it."""
    cause_ns: Nanoseconds
    """``[cause, rank, position]`` in the order of :data:`CAUSES`; sums to ``stall_ns`` over causes."""

    begin_ns: Nanoseconds
    """``[rank]``: forward begin."""
    arrival_ns: Nanoseconds
    """``[rank]``: arrival at position 0."""
    end_ns: Nanoseconds
    phase: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.uint32]
    requests: npt.NDArray[np.uint32]
    links: tuple[Links, ...]
    """``[rank]``: trace contexts of the batch's requests, as far as they are traced; at most 32."""
    run_delay_us: npt.NDArray[np.uint32]
    steal_us: npt.NDArray[np.uint32]
    step_flags: npt.NDArray[np.uint8]
    waits: npt.NDArray[np.uint16]
    comparable: bool
    """Whether all instants are on one clock: the ranks share it, or their clocks are aligned."""
    clock_shift_ns: Nanoseconds
    """``[rank]``: what was added to the rank's instants to show them on the clock of the group's first rank."""
    clock_bound_ns: Nanoseconds
    """``[rank]``: largest error of that. Differences between two ranks with different clocks may be off by the sum."""
    entry_skew_ns: Nanoseconds
    """``[rank]``: arrival minus the group's first arrival; 0 where unknown (:attr:`entry_known`) or shorter than the
    bound of the two ranks' clocks."""
    path: CriticalPath | None
    """None if the step has no critical path, for example because it is incomplete or was aborted."""
    of_rank: int | None
    """Group rank whose step this is, in a pull series; None if all ranks run the step together."""

    @classmethod
    def of(cls, columns: StepColumns, row: int) -> Self:
        """Return the facts of one of several finished steps."""
        facts = object.__new__(cls)
        object.__setattr__(facts, "columns", columns)
        object.__setattr__(facts, "row", row)
        return facts

    @property
    def shared(self) -> bool:
        """Whether the layers are shared, and not only observed."""
        return all(info is None or info.shared for info in self.infos)

    @property
    def from_ranks(self) -> Mask:
        """``[rank]``: each layer comes from the rank that stores it, as far as is known."""
        return np.array([info is None or info.from_ranks for info in self.infos], np.bool_)

    @property
    def only_rank(self) -> RankKey | None:
        """The rank whose step this is, in a pull series; None if all ranks run the step together."""
        return None if self.of_rank is None else self.ranks[self.of_rank]

    @property
    def running(self) -> list[int]:
        """The group ranks that run the step: all, or one of a pull series."""
        return list(range(len(self.ranks))) if self.of_rank is None else [self.of_rank]

    @property
    def duration_ns(self) -> Nanoseconds:
        """``[rank]``: forward begin to forward end; 0 where the step record is missing."""
        return np.where(self.ended, self.end_ns - self.begin_ns, 0)

    @property
    def common_phase(self) -> Phase:
        """The phase of the step's ranks, or mixed if they differ. Dummy ranks do not count, unless all are."""
        phases = set(self.phase[self.ended].tolist())
        real = phases - {int(Phase.DUMMY)} or phases
        return Phase(real.pop()) if len(real) == 1 else Phase.MIXED if real else Phase.OTHER

    @property
    def layer_ns(self) -> Nanoseconds:
        """``[rank, position]``: of an observed series, the time from a layer's reach to the next layer's.

        0 for the last layer, after which the step goes on, and where a record is missing.
        """
        known = self.present[:, :-1] & self.present[:, 1:]
        return np.pad(np.where(known, np.diff(self.issued_ns, axis=1), 0), ((0, 0), (0, 1)))

    @property
    def aborted(self) -> bool:
        """Whether some rank ended the step early."""
        return bool((self.step_flags[self.ended] & StepFlag.ABORTED).any())

    @property
    def whole(self) -> Mask:
        """``[rank]``: the rank ended the step and no record is missing, so its stall is complete."""
        return np.asarray(self.ended & self.present.all(axis=1), np.bool_)

    @property
    def partial(self) -> bool:
        """Whether some rank that ended the step lacks records of it."""
        return not np.array_equal(self.whole, self.ended)

    @property
    def entry_known(self) -> bool:
        """Whether the ranks' arrivals can be compared: all are available and from one clock.

        The ranks of a pull series are never compared.
        """
        return self.comparable and bool(self.ended.all())


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram of durations: ``counts[i]`` were at most ``bounds_ns[i]`` and above the previous bound."""

    bounds_ns: tuple[int, ...]
    counts: tuple[int, ...]
    """One more than bounds: the last count has no upper bound."""
    sum_ns: int

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Totals:
    """All counts for one rank of one series, without steps that are history. They only grow."""

    waits: dict[Outcome, int]
    unwaited: int
    """Broadcasts that no linear waited for, because the forward was aborted or bypassed the linear."""
    open: int
    """Broadcasts in flight when the run ended: its last k."""
    sent: int
    """Broadcasts whose source this rank was; 0 in a pull series, whose sources do nothing."""
    received: int
    bytes: int
    """Bytes of all broadcasts this rank took part in; of its copies, in a pull series."""
    ready_unobserved: int
    """Waits whose ready instant was not observed, so that their stall is an upper bound."""
    stall_ns: int
    cause_ns: dict[Cause, int]
    """Sums to the stall of all finished steps."""
    steps: int
    untimed_steps: dict[str, int]
    """Untimed steps, by reason (:class:`~swtrace.trace.schema.Untimed`). They are part of all counts, but of no
    duration."""
    aborted_steps: int
    unwaited_steps: int
    """Steps that waited for no layer: the series linear is bypassed."""
    stall: Distribution
    slack: Distribution
    sent_duration: Distribution
    """Issued to ready, at the source."""
    received_duration: Distribution
    """Issued to ready, at a receiver: includes queueing and transfer."""
    step_duration: dict[str, Distribution]
    """By phase."""


@dataclass(frozen=True, slots=True)
class Recent:
    """One rank of one series over the last timed steps (64 by default)."""

    steps: int
    step_ns: int
    """Sum of step durations."""
    stall_ns: int
    wake_ns: int
    slack_ns: int
    waits: int
    """Receivers' waits."""
    on_time: int
    attributed_stall_ns: int
    """Stall of the waits whose transfer is known."""
    skew_ns: int
    """Skew and entry skew parts of :attr:`attributed_stall_ns`."""
    transfer_ns: int
    """Sum over the same waits."""
    transfer_bound_ns: int
    """Sum of their bounds; 0 on one clock."""
    transfer_bytes: int
    cause_ns: dict[Cause, int]
    excess_ns: int
    """Critical-path excess compute of this rank."""
    path_steps: int
    """Steps that have a critical path."""
    tokens: int
    """Sum of the batches' tokens."""

    @property
    def stall_ratio(self) -> float | None:
        """``sum(stall) / step time``; None without a finished step, or a wait that could stall."""
        return self.stall_ns / self.step_ns if self.step_ns > 0 and self.waits else None

    @property
    def on_time_rate(self) -> float | None:
        """On-time waits per wait; None without a wait."""
        return self.on_time / self.waits if self.waits else None

    @property
    def efficiency(self) -> float | None:
        """``1 - sum(stall - its skew part) / sum(transfer)``, clamped to [0, 1]; None where transfers are not known."""
        if not self.transfers_known:
            return None
        return min(1.0, max(0.0, 1.0 - (self.attributed_stall_ns - self.skew_ns) / self.transfer_ns))

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second while transferring; None where transfers are not known."""
        return self.transfer_bytes * 1e9 / self.transfer_ns if self.transfers_known else None

    @property
    def transfers_known(self) -> bool:
        """Whether something was transferred, and the bounds of the clocks are small compared with that."""
        return self.transfer_ns > 0 and self.transfer_bound_ns <= TRANSFER_BOUND_SHARE * self.transfer_ns


@dataclass(frozen=True, slots=True)
class SeriesRankFacts:
    """Facts of one rank of one series."""

    rank: RankKey
    host: str
    info: SeriesInfo
    totals: Totals
    recent: Recent
    last_step: int | None
    """Number of the last finished step that was timed; None before the first."""
    last_stall_ns: int | None
    """Stall of the last such step without missing records; None before the first."""
    effective_prefetch_step: int | None
    """Smallest number of positions between reach and layer in the last timed step; None before the first broadcast."""
    operations_ahead: int
    """By how much the last broadcast of its last timed step has a higher number than that step says; equal on all ranks
    that run the same steps."""
    last_record: Mapping[str, int]
    """Fields of the newest STEP record, timed or not, by the names in ``schema.STEP_FIELDS``; 0 before the first."""
    recent_as_planned: Recent | None = None
    """The same sums as :attr:`recent`, over those of the steps that the rank's plan is about; None without a plan."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of received layers that stay in memory because the program holds references, as of the last step."""
        return self.last_record["kept_layers"] * self.info.layer_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of weights that the rank holds. Without a series it would hold ``info.replicated_bytes``."""
        return self.info.owned_bytes + self.info.window_bytes + self.kept_bytes


class Pattern(StrEnum):
    """When a straggler is slow."""

    CONSTANT = "constant"
    INTERMITTENT = "intermittent"
    """In some of the steps."""
    PHASE = "phase"
    """In the steps of one phase."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """Ranks that compute longer than the others, in the same way (:mod:`~swtrace.ledger.stragglers`)."""

    ranks: tuple[RankKey, ...]
    """The worst first."""
    excess_ns: int
    """How much longer the worst rank computes, in the median affected step."""
    share: float
    """Its mean excess per step, as a share of the median step time."""
    pattern: Pattern
    often: float
    """Share of steps that are affected."""
    period: int | None
    """Distance of the affected steps; None if they have none in common."""
    phase: Phase | None
    """The phase whose steps are affected; None if it does not matter."""
    confidence: float
    since_ns: int
    """When the first affected step began, in CLOCK_MONOTONIC of the group's first rank; 0 if unknown."""
    since_step: int | None
    """The first affected step; None if it is older than the steps that are compared."""


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series over all its ranks."""

    key: SeriesKey
    ranks: tuple[SeriesRankFacts, ...]
    """The ranks that this ledger reads, in group order."""
    steps: int
    """Number of finished steps that :class:`Recent` covers."""
    stragglers: tuple[Straggler, ...]
    """The worst first."""
    pending_steps: int
    """Steps that some rank has not ended yet."""
    clocks: int
    """Number of clocks that timed the ranks read here. More than one means several hosts or time namespaces."""
    alignment: tuple[AlignedClock, ...]
    """Every clock but that of the first rank."""
    impossible_steps: int
    """Steps in which a broadcast was ready before its source issued it, so the ranks' clocks must differ."""

    @property
    def lockstep(self) -> bool:
        """Whether the ranks run the same steps, so that they can be compared."""
        return all(rank.info.lockstep for rank in self.ranks)

    @property
    def shared(self) -> bool:
        """Whether the layers are shared. Otherwise the series is observed: nothing moves, and nothing can stall."""
        return all(rank.info.shared for rank in self.ranks)

    @property
    def apart(self) -> bool:
        """Whether there are several ranks, and each runs steps of its own."""
        return not self.lockstep and len(self.key.group_ranks) > 1

    @property
    def offloaded(self) -> bool:
        """Whether the layers are in host memory, from which other code copies them."""
        return self.ranks[0].info.offloaded

    @property
    def terms(self) -> Terms:
        """How sentences speak of the layers."""
        return self.ranks[0].info.terms

    @property
    def moves(self) -> str:
        """What fills the windows, for sentences: ``broadcasts`` or ``copies``."""
        return "broadcasts" if self.lockstep else "copies"

    @property
    def hosts(self) -> dict[str, list[int]]:
        """The global ranks that are read here, by host."""
        ranks: dict[str, list[int]] = {}
        for rank in self.ranks:
            ranks.setdefault(rank.host, []).append(rank.rank.rank)
        return ranks

    def host_of(self, rank: int) -> str:
        """Return the host of a global rank; empty if all ranks are on one host, or if it is unknown."""
        if len({each.host for each in self.ranks}) == 1:
            return ""
        return next((each.host for each in self.ranks if each.rank.rank == rank), "")

    def named(self, rank: int) -> str:
        """Return the number of a global rank, with its host where there are several: ``5 (gpu-b)``."""
        host = self.host_of(rank)
        return f"{rank} ({host})" if host else str(rank)

    def clock_numbers(self) -> npt.NDArray[np.int64]:
        """Return ``[rank]``: which clock times a group rank. 0 is the reference, *n* the n-th in the alignment."""
        numbers = np.zeros(len(self.key.group_ranks), np.int64)
        for number, clock in enumerate(self.alignment, 1):
            numbers[list(clock.group_ranks)] = number
        return numbers

    @property
    def clock_bound_ns(self) -> int:
        """Largest error of a difference between two ranks whose clocks are known, as of the last step."""
        return sum(sorted(clock.bound_ns for clock in self.alignment)[-2:])


@dataclass(frozen=True, slots=True)
class Oddities:
    """Records that could not be used as they were. All zero on a healthy run without lost records."""

    duplicate: int
    """Repeated records for the same rank, series, layer and step: ignored."""
    late: int
    """Records for a step that was already finished: counted in :class:`Totals`, absent from cross-rank facts."""
    missing: int
    """Records absent from a step when it was finished."""
    unknown: int
    """Records of an unknown kind, or of a series or position that is not in the ring's tables: ignored."""
    wild: int
    """Records with an impossible step number: ignored."""
    impossible: int
    """Steps in which this rank had a broadcast before its source issued it: ranks are not compared in them."""
    evicted_steps: int
    """Finished early because a rank fell too far behind."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """Facts of a rank that do not belong to one series."""

    identity: RankIdentity
    records: int
    """Records added."""
    last_record_ns: int
    """The newest instant in the records, in CLOCK_MONOTONIC of the rank's host; 0 before the first."""
    oddities: Oddities


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """All facts of a ledger at one moment. The same records give the same facts in every view."""

    ranks: tuple[RankFacts, ...]
    series: tuple[SeriesFacts, ...]
    steps_untaken: int
    """Finished steps dropped from the queue of :meth:`Ledger.take_steps` before they were taken."""
