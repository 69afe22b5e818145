"""Declarations of all Prometheus metrics of the daemon, which ``docs/metrics.md`` documents.

:data:`METRICS` defines the name of each metric and where its value is read. Both outputs are made from it:
:class:`SnapshotCollector` for a registry of ``prometheus_client``, and :mod:`swtrace.daemon.exposition` for a scrape.
Neither counts anything. Counters are the totals of the ledger and the rings, so a scrape is exactly as accurate.
"""

from __future__ import annotations

import platform
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Generic, Literal, TypeVar

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from swtrace.daemon.exemplars import BucketExemplars, WaitExemplar
from swtrace.daemon.findings import CurrentFindings, labels_of
from swtrace.daemon.labels import Labelling, Labels
from swtrace.daemon.snapshot import ExportOutcome, Health, Snapshot, WatchedSource, watched_sources
from swtrace.ledger.alignment import AlignedClock
from swtrace.ledger.comparison import Comparison, compare
from swtrace.ledger.facts import Distribution, Recent, SeriesRankFacts
from swtrace.observing import Observation, ObservedRank
from swtrace.observing.observation import SeriesEntry, series_key
from swtrace.plan_file import Interval
from swtrace.trace.identity import Planned, RankKey
from swtrace.trace.marks import Occupancy
from swtrace.version import __version__


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One label set, and the source of the samples that carry it."""

    labels: Labels

    @property
    def began_ns(self) -> int:
        """UNIX time before which nothing was counted; 0 if the daemon's start says so."""
        return 0


@dataclass(frozen=True, slots=True)
class DaemonRow(MetricRow):
    """The daemon. There is one such row, without labels."""

    health: Health
    snapshot: Snapshot | None
    exports: dict[ExportOutcome, int]


@dataclass(frozen=True, slots=True)
class RankRow(MetricRow):
    """A rank, or a part of it."""

    rank: ObservedRank

    @property
    def began_ns(self) -> int:
        """When the rank's ring was made."""
        return self.rank.identity.start_time_ns


@dataclass(frozen=True, slots=True)
class RingRow(RankRow):
    """A rank's ring."""

    last_record_ns: int

    def about(self) -> Labels:
        """Return labels that say what the rank is part of, and where it runs."""
        identity = self.rank.identity
        described = {"run": identity.run_id, "host_name": identity.host, "model": identity.model}
        return {**described, "pid": str(identity.pid), **asdict(identity.workload)}

    def last_record_s(self) -> float | None:
        """Return the UNIX time of the newest instant that the rank recorded; None before the first."""
        offset_ns = self.rank.run_began_ns if self.rank.simulated else self.rank.unix_offset_ns
        return (self.last_record_ns + offset_ns) / 1e9 if self.last_record_ns > 0 else None


@dataclass(frozen=True, slots=True)
class SeriesRow(RankRow):
    """A series of a rank, as the ring's tables describe it."""

    entry: SeriesEntry
    facts: SeriesRankFacts | None

    def occupancy(self) -> dict[Occupancy, int] | None:
        """Return the number of windows in each state; None if the series is only observed."""
        if not self.entry.info.shared:
            return None
        states = [window.state for window in self.entry.windows]
        return {state: states.count(state) for state in Occupancy}

    def prefetch_step(self) -> dict[str, int] | None:
        """Return the configured prefetch step and, once known, the effective one; None if nothing is shared."""
        if not self.entry.info.shared:
            return None
        effective = self.facts.effective_prefetch_step if self.facts else None
        return {"configured": self.entry.info.prefetch_step} | ({} if effective is None else {"effective": effective})

    def bytes(self) -> dict[str, int]:
        """Return the weight bytes held on the rank, and the bytes that all layers would take."""
        info = self.entry.info
        kept = self.facts.kept_bytes if self.facts else 0
        held = {"owned": info.owned_bytes, "windows": info.window_bytes, "kept": kept}
        return held | {"replicated": info.replicated_bytes}

    def about(self) -> Labels:
        """Return labels that describe the series and where it runs."""
        info, identity = self.entry.info, self.rank.identity
        return {
            "run": identity.run_id,
            "host_name": identity.host,
            "model": identity.model,
            "swtrace_version": identity.version,
            "kind": info.kind,
            "transport": info.transport,
            "windows": info.windows,
            "clock": info.clock,
            "start_layer": str(info.start_layer),
            "num_layers": str(info.num_layers),
            "stack_layers": str(info.stack_layers),
            "group_size": str(len(info.group_ranks)),
            "rank_in_group": str(info.rank_in_group),
        }


@dataclass(frozen=True, slots=True)
class FactsRow(RankRow):
    """A series of a rank, with the ledger's facts about it."""

    facts: SeriesRankFacts
    slowest: BucketExemplars
    excess_share: float
    compared: Comparison | None
    """What the plan predicts for the series."""

    def step_duration(self) -> dict[str, Distribution]:
        """Return step durations of the phases that have occurred. All five would make up half of an exposition."""
        return {phase: steps for phase, steps in self.facts.totals.step_duration.items() if steps.count}

    def planned_step(self) -> dict[str, float] | None:
        """Return the step time by the plan, in seconds, and as measured; None without a plan for this run."""
        figures = self._planned(lambda plan: plan.step_ns, lambda recent: recent.step_ns / recent.steps)
        return figures and {kind: ns / 1e9 for kind, ns in figures.items()}

    def planned_stall_ratio(self) -> dict[str, float] | None:
        """Return the stall ratio by the plan and as measured; None without a plan for this run."""
        return self._planned(lambda plan: plan.stall_ratio, lambda recent: recent.stall_ratio or 0.0)

    def _planned(
        self, predicted: Callable[[Planned], Interval], measured: Callable[[Recent], float]
    ) -> dict[str, float] | None:
        compared = self.compared
        if compared is None or compared.differs:
            return None
        interval, recent = predicted(compared.planned), self.facts.recent_as_planned
        figures = {"predicted": interval.value, "low": interval.low, "high": interval.high}
        return figures | ({"measured": measured(recent)} if recent is not None and recent.steps else {})


@dataclass(frozen=True, slots=True)
class SharedRow(FactsRow):
    """The same, if its layers are shared. An observed series has nothing that moves or stalls, so no such samples."""


@dataclass(frozen=True, slots=True)
class TransferRow(SharedRow):
    """The same, with the kind of its transfers as a label."""

    def duration(self) -> dict[str, Distribution]:
        """Return durations of transfers by role. The owner of a layer that others copy has none."""
        totals = self.facts.totals
        sent = {"source": totals.sent_duration} if self.facts.info.lockstep else {}
        return sent | {"receiver": totals.received_duration}


@dataclass(frozen=True, slots=True)
class WatchedRow(MetricRow):
    """A daemon that this daemon watches."""

    source: WatchedSource


@dataclass(frozen=True, slots=True)
class ClockRow(RankRow):
    """A series of a rank whose clock is not that of the group's first rank."""

    clock: AlignedClock

    @property
    def known(self) -> bool:
        """Whether the clock's offset is known."""
        return self.clock.offset_ns is not None


@dataclass(frozen=True, slots=True)
class UntracedRow(MetricRow):
    """A rank that does not record a series, according to its peers."""


@dataclass(frozen=True, slots=True)
class RefusedRow(MetricRow):
    """A linear that was requested but is not shared."""


@dataclass(frozen=True, slots=True)
class FindingRow(MetricRow):
    """A finding about a rank or a series, or about neither."""


Rows = Mapping[type[MetricRow], list[MetricRow]]
"""All label sets of one snapshot, by type of row."""
R = TypeVar("R", bound=MetricRow)
Value = float | Distribution | dict[Any, Any]

_SUFFIXES = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True, slots=True)
class Metric(Generic[R]):
    """The name of a metric, and where its value is read."""

    kind: Literal["gauge", "counter", "histogram", "info"]
    name: str
    """As written in queries and in ``docs/metrics.md``."""
    about: type[R]
    value: Callable[[R], Value | None]
    """Returns a number, a distribution for a histogram, or labels for an info. None means no sample.
    With :attr:`by`, it returns a dict with one of these for each value of that label."""
    help: str
    by: str = ""
    """The label that the metric adds to the labels of the row."""
    counts: str = ""
    """What a number without a unit counts, as a singular noun."""
    since_ring: bool = False
    """Whether a counter begins with the rank's ring, also if the daemon started later."""
    exemplars: Callable[[R], BucketExemplars] | None = None
    """Only for a histogram without :attr:`by`."""

    def family(self, rows: Iterable[R]) -> Family:
        """Return the samples of these rows as a ``prometheus_client`` family."""
        family = Family(self.name.removesuffix(_SUFFIXES.get(self.kind, "")), self.help, self.kind)
        for row in rows:
            value = self.value(row)
            if value is not None:
                waits = self.exemplars(row) if self.exemplars else {}
                exemplars = {bucket: as_exemplar(wait) for bucket, wait in waits.items()}
                names = self._names(row, value)
                for index, ((name, labels), number) in enumerate(zip(names, self.numbers(value), strict=True)):
                    family.add_sample(name, labels, number, exemplar=exemplars.get(index))
        return family

    def numbers(self, value: Value) -> list[float]:
        """Return the numbers of a value's samples."""
        if isinstance(value, Distribution):
            cumulative = list(accumulate(value.counts))
            return [*cumulative, cumulative[-1], value.sum_ns / 1e9]
        if not isinstance(value, dict):
            return [value]
        if self.kind == "info":
            return [1]
        return [number for each in value.values() for number in self.numbers(each)]

    def points(self, row: R, value: Value) -> Iterator[tuple[Labels, float | Distribution]]:
        """Yield each number or distribution of a row's value, with its labels."""
        if not isinstance(value, dict):
            yield row.labels, value
        elif self.kind == "info":
            yield {**value, **row.labels}, 1
        else:
            for key, each in value.items():
                yield {**row.labels, self.by: str(key)}, each

    def _names(self, row: R, value: Value) -> Iterator[tuple[str, Labels]]:
        """Yield the names and labels of the samples of a row's value."""
        for labels, each in self.points(row, value):
            if isinstance(each, Distribution):
                for bound in (*(repr(bound_ns / 1e9) for bound_ns in each.bounds_ns), "+Inf"):
                    yield f"{self.name}_bucket", {**labels, "le": bound}
                yield f"{self.name}_count", labels
                yield f"{self.name}_sum", labels
            else:
                yield self.name, labels


def as_exemplar(wait: WaitExemplar) -> Exemplar:
    """Return a wait as an OpenMetrics exemplar. The Prometheus text format cannot carry exemplars."""
    return Exemplar({"layer": str(wait.layer), "trace_id": wait.trace_id}, wait.stall_ns / 1e9, wait.unix_ns / 1e9)


def _unreadable(observation: Observation) -> int:
    """Return the number of files with a problem. That of the folder itself is the daemon's readiness."""
    return len(observation.problems.keys() - {origin.name for origin in observation.origins})


# Not annotated, so that mypy infers the type of each entry and checks its value function against its rows.
_DECLARED = (
    Metric(
        "gauge",
        "swtrace_window_occupancy",
        SeriesRow,
        SeriesRow.occupancy,
        "Number of windows, by state.",
        by="state",
        counts="window",
    ),
    Metric(
        "gauge",
        "swtrace_stall_seconds",
        SharedRow,
        lambda row: None if row.facts.last_stall_ns is None else row.facts.last_stall_ns / 1e9,
        "Stall of the last timed step, summed over its layers.",
    ),
    Metric(
        "histogram",
        "swtrace_wait_stall_seconds",
        SharedRow,
        lambda row: row.facts.totals.stall,
        "How long a receiver's wait was blocked for its weight. One observation per wait of a timed step.",
        exemplars=lambda row: row.slowest,
    ),
    Metric(
        "histogram",
        "swtrace_prefetch_slack_seconds",
        SharedRow,
        lambda row: row.facts.totals.slack,
        "How long a receiver's weight was ready before its wait began. One observation per wait of a timed step.",
    ),
    Metric(
        "histogram",
        "swtrace_transfer_duration_seconds",
        TransferRow,
        TransferRow.duration,
        "Time from issued to ready of a transfer, queueing included, by kind of transfer and role of the rank.",
        by="role",
    ),
    Metric(
        "counter",
        "swtrace_transfer_bytes_total",
        TransferRow,
        lambda row: row.facts.totals.bytes,
        "Payload bytes of all transfers that the rank took part in, by kind: broadcasts, or its own copies.",
    ),
    Metric(
        "counter",
        "swtrace_stall_cause_seconds_total",
        SharedRow,
        lambda row: {cause: cause_ns / 1e9 for cause, cause_ns in row.facts.totals.cause_ns.items()},
        "Stall by proximate cause. The causes sum to the total stall.",
        by="cause",
    ),
    Metric(
        "counter",
        "swtrace_waits_total",
        SharedRow,
        lambda row: row.facts.totals.waits,
        "Waits by outcome. The outcomes sum to all waits.",
        by="outcome",
        counts="wait",
    ),
    Metric(
        "gauge",
        "swtrace_prefetch_efficiency_ratio",
        SharedRow,
        lambda row: row.facts.recent.efficiency,
        "1 - (stall without its skew) / transfer, over the last 64 steps. 1 means that all transfer was hidden.",
    ),
    Metric(
        "gauge",
        "swtrace_straggler_excess_ratio",
        FactsRow,
        # The critical path is unknown if ranks of the group are not read, or their clocks are not aligned. The ranks of
        # a pull series have none in common.
        lambda row: (
            row.excess_share
            if (row.excess_share or row.facts.recent.path_steps)
            and row.facts.info.lockstep
            and len(row.facts.info.group_ranks) > 1
            else None
        ),
        "Mean excess compute of a straggler per step, as a share of the median step time; 0 for all other ranks.",
    ),
    Metric(
        "gauge",
        "swtrace_clock_offset_seconds",
        ClockRow,
        lambda row: None if row.clock.offset_ns is None else row.clock.offset_ns / 1e9,
        "Time added to the rank's instants to show them on the clock of the group's first rank.",
    ),
    Metric(
        "gauge",
        "swtrace_clock_offset_bound_seconds",
        ClockRow,
        lambda row: row.clock.bound_ns / 1e9 if row.known else None,
        "Largest error of the clock's offset, and so of each difference to a rank on the first rank's clock.",
    ),
    Metric(
        "gauge",
        "swtrace_clock_drift_ratio",
        ClockRow,
        lambda row: row.clock.drift if row.known else None,
        "Seconds that the clock of the group's first rank gains per second of the rank's clock.",
    ),
    Metric(
        "counter",
        "swtrace_clock_restarts_total",
        ClockRow,
        lambda row: row.clock.restarts,
        "How often the rank's clock was set to another time, so that its offset had to be found again.",
        counts="restart",
    ),
    Metric(
        "counter",
        "swtrace_steps_total",
        FactsRow,
        lambda row: row.facts.totals.steps,
        "Finished forward passes.",
        counts="step",
    ),
    Metric(
        "counter",
        "swtrace_untimed_steps_total",
        FactsRow,
        lambda row: row.facts.totals.untimed_steps,
        "Finished forward passes that were not timed, by reason. They are in all counts and in no duration.",
        by="reason",
        counts="step",
    ),
    Metric(
        "histogram",
        "swtrace_step_duration_seconds",
        FactsRow,
        FactsRow.step_duration,
        "Time from begin to end of a timed forward pass, by phase.",
        by="phase",
    ),
    Metric(
        "gauge",
        "swtrace_planned_step_seconds",
        FactsRow,
        FactsRow.planned_step,
        "Mean time of a step: predicted by the plan, with the ends of its range, and measured over the last 64 steps.",
        by="kind",
    ),
    Metric(
        "gauge",
        "swtrace_planned_stall_ratio",
        FactsRow,
        FactsRow.planned_stall_ratio,
        "Stall ratio: predicted by the plan, with the ends of its range, and measured over the last 64 steps.",
        by="kind",
    ),
    Metric(
        "gauge",
        "swtrace_prefetch_step",
        SeriesRow,
        SeriesRow.prefetch_step,
        "How many layers ahead broadcasts or copies start: as configured, and as observed in the last step.",
        by="kind",
        counts="layer",
    ),
    Metric(
        "gauge",
        "swtrace_series_bytes",
        SeriesRow,
        SeriesRow.bytes,
        "Weight bytes held on the rank, and what holding all layers would take.",
        by="kind",
    ),
    Metric(
        "gauge",
        "swtrace_finding",
        FindingRow,
        lambda _: 1,
        "1 while a rule finds what its kind says about the rank or series. Without it, there is no sample.",
    ),
    Metric(
        "gauge",
        "swtrace_rank_up",
        RingRow,
        lambda row: row.rank.ring.alive,
        "1 while the rank's process is alive, 0 once it has ended. The sample disappears some minutes later.",
    ),
    Metric(
        "gauge",
        "swtrace_rank_died",
        RingRow,
        lambda row: row.rank.died,
        "1 if the rank's process ended without closing its ring and was not stopped together with its run.",
    ),
    Metric("info", "swtrace_rank_info", RingRow, RingRow.about, "Run, model and process of a rank, and where it runs."),
    Metric(
        "info",
        "swtrace_rank_untraced_info",
        UntracedRow,
        lambda _: {},
        "Rank that shares the series but does not record it, as reported by its peers, with the reason.",
    ),
    Metric(
        "gauge",
        "swtrace_rank_last_record_timestamp_seconds",
        RingRow,
        RingRow.last_record_s,
        "UNIX time of the newest instant that the rank recorded.",
    ),
    Metric(
        "counter",
        "swtrace_ring_records_total",
        RingRow,
        lambda row: row.rank.ring.statistics.written,
        "Records written since the ring was made: delivered, skipped, lost or pending.",
        counts="record",
        since_ring=True,
    ),
    Metric(
        "counter",
        "swtrace_ring_lost_records_total",
        RingRow,
        lambda row: {"lapped": row.rank.ring.statistics.lapped, "damaged": row.rank.ring.statistics.damaged},
        "Records overwritten before they were read (lapped), or found damaged.",
        by="reason",
        counts="record",
    ),
    Metric(
        "gauge",
        "swtrace_ring_pending_records",
        RingRow,
        lambda row: row.rank.ring.statistics.pending,
        "Records written but not yet read.",
        counts="record",
    ),
    Metric(
        "gauge",
        "swtrace_ring_lag_seconds",
        RingRow,
        lambda row: row.rank.ring.lag_ns / 1e9,
        "How much newer the rank's newest record is than the last one read; 0 when all are read.",
    ),
    Metric(
        "gauge",
        "swtrace_ring_problems",
        DaemonRow,
        lambda row: None if row.snapshot is None else _unreadable(row.snapshot.observation),
        "Ring files that cannot be read, or that a ring of the same run id and rank hides.",
        counts="file",
    ),
    Metric(
        "gauge",
        "swtrace_daemon_ready",
        DaemonRow,
        lambda row: row.snapshot is not None and not row.health.trouble,
        "1 while the daemon can read its rings and see new ranks. If 0, see /healthz. Old figures are never served.",
    ),
    Metric(
        "gauge",
        "swtrace_watched_up",
        WatchedRow,
        lambda row: row.source.up,
        "1 while a watched daemon answers. If 0, none of its ranks is shown; /api/v1/health says why.",
    ),
    Metric(
        "gauge",
        "swtrace_watched_lag_seconds",
        WatchedRow,
        lambda row: row.source.lag_ns / 1e9,
        "How much newer the newest record of a watched daemon's ranks is than the last one that it sent.",
    ),
    Metric(
        "gauge",
        "swtrace_watched_lost_records",
        WatchedRow,
        lambda row: row.source.lost,
        "Records of a watched daemon's present ranks that were overwritten, damaged or skipped since it was connected.",
        counts="record",
    ),
    Metric(
        "gauge",
        "swtrace_daemon_last_poll_timestamp_seconds",
        DaemonRow,
        lambda row: row.health.polled_realtime_ns / 1e9,
        "UNIX time at which the daemon last read its rings.",
    ),
    Metric(
        "gauge",
        "swtrace_daemon_start_timestamp_seconds",
        DaemonRow,
        lambda row: None if row.snapshot is None else row.snapshot.started_realtime_ns / 1e9,
        "UNIX time at which the daemon started.",
    ),
    Metric(
        "counter",
        "swtrace_daemon_poll_errors_total",
        DaemonRow,
        lambda row: row.health.poll_errors,
        "Polls of the ring folder that failed. A single unreadable ring does not count.",
        counts="poll",
    ),
    Metric(
        "counter",
        "swtrace_spans_exported_total",
        DaemonRow,
        lambda row: None if row.snapshot is None else row.snapshot.spans.exported,
        "Spans that a collector accepted.",
        counts="span",
    ),
    Metric(
        "counter",
        "swtrace_spans_dropped_total",
        DaemonRow,
        lambda row: None if row.snapshot is None else row.snapshot.spans.dropped,
        "Spans of sampled steps that no collector accepted, by reason.",
        by="reason",
        counts="span",
    ),
    Metric(
        "counter",
        "swtrace_metric_exports_total",
        DaemonRow,
        lambda row: row.exports,
        "Exports of all metrics to a collector, by outcome.",
        by="outcome",
        counts="export",
    ),
    Metric(
        "info",
        "swtrace_build_info",
        DaemonRow,
        lambda _: {"version": __version__, "python_version": platform.python_version()},
        "Versions of the daemon and of its Python.",
    ),
    Metric("info", "swtrace_series_info", SeriesRow, SeriesRow.about, "What a series is, and where it runs."),
    Metric(
        "info",
        "swtrace_series_refused_info",
        RefusedRow,
        lambda _: {},
        "Linear that was requested but is not shared, with the reason.",
    ),
)
METRICS: tuple[Metric[Any], ...] = _DECLARED
"""In the order in which they are exposed."""


class SnapshotCollector(Collector):
    """Collects metrics from the newest snapshot."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot | None],
        health: Callable[[], Health],
        exports: Callable[[], dict[ExportOutcome, int]] = lambda: dict.fromkeys(ExportOutcome, 0),
    ) -> None:
        """Call ``snapshot``, then ``health`` and ``exports`` at every scrape and export."""
        self._snapshot = snapshot
        self._health = health
        self._exports = exports
        self._labelling = Labelling()
        self._findings = CurrentFindings()
        self._assigning = threading.Lock()

    def collect(self) -> Iterable[Family]:
        """Return all metric families. Those of ranks are empty while no rank is known or readable."""
        rows = self.rows()
        return [metric.family(rows.get(metric.about, ())) for metric in METRICS]

    def rows(self) -> Rows:
        """Return the rows of the newest snapshot."""
        rows: dict[type[MetricRow], list[MetricRow]] = defaultdict(list)
        for row in self._read():
            rows[type(row)].append(row)
        return rows

    def _read(self) -> Iterator[MetricRow]:
        snapshot = self._snapshot()
        yield DaemonRow({}, self._health(), snapshot, self._exports())
        if snapshot is None:
            return
        with self._assigning:  # A scrape and an export may come at once.
            ranks = self._labelling.assign(snapshot.observation.ranks, hosts=snapshot.watched is not None)
            found = labels_of(self._findings.of(snapshot.observation), ranks, snapshot.observation)
        yield from map(FindingRow, found)
        yield from (WatchedRow({"source": source.name}, source) for source in watched_sources(snapshot))
        # Every peer reports an untraced rank; one sample is enough.
        for untraced in {tuple(labels.items()): labels for rank in ranks for labels in rank.untraced()}.values():
            yield UntracedRow(untraced)
        observation = snapshot.observation
        known, series_facts = observation.rank_facts(), observation.series_rank_facts()
        clocks = {
            (RankKey(series.key.run_id, series.key.group_ranks[group_rank]), series.key): clock
            for series in observation.facts.series
            for clock in series.alignment
            for group_rank in clock.group_ranks
        }
        stragglers = observation.stragglers()
        compared = {series.key: compare(series) for series in observation.facts.series}
        for rank in ranks:
            rank_key = rank.rank.key
            facts = known.get(rank_key)
            yield RingRow(rank.labels, rank.rank, facts.last_record_ns if facts else 0)
            yield from map(RefusedRow, rank.refused())
            for entry, labels in rank.series():
                key = rank_key, series_key(rank_key, entry.info)
                series = series_facts.get(key)
                yield SeriesRow(labels, rank.rank, entry, series)
                if series is not None:
                    of_bucket, excess = snapshot.exemplars.get(key, {}), stragglers.get(key, 0.0)
                    row = rank.rank, series, of_bucket, excess, compared.get(key[1])
                    yield FactsRow(labels, *row)
                    if series.info.shared:
                        yield SharedRow(labels, *row)
                        yield TransferRow({**labels, "kind": series.info.kind}, *row)
                if key in clocks:
                    yield ClockRow(labels, rank.rank, clocks[key])
