"""A snapshot as Prometheus metrics: the names, labels and units of ``docs/metrics.md``, and nothing else.

One custom collector on a registry of its own. It keeps no values: counters are the ledger's and the rings' own
totals, so that a scrape is as exact as they are.
"""

from __future__ import annotations

import platform
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from swtrace.daemon.labels import Labelling
from swtrace.observing.observation import series_key
from swtrace.trace.reader import Occupancy
from swtrace.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from swtrace.daemon.exemplars import BucketExemplars, WaitExemplar
    from swtrace.daemon.labels import LabelledRank, Labels
    from swtrace.daemon.snapshot import Health, Snapshot
    from swtrace.ledger.facts import Distribution, SeriesRankFacts
    from swtrace.observing import ObservedRank
    from swtrace.observing.observation import SeriesEntry


class SnapshotCollector(Collector):
    """Collects from the newest snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot | None], health: Callable[[], Health]) -> None:
        """Ask ``snapshot`` at every scrape, and then ``health``."""
        self._snapshot = snapshot
        self._health = health
        self._labelling = Labelling()

    def collect(self) -> Iterable[Metric]:
        """Return every metric family; those of ranks are empty while no rank is known, or none can be read."""
        families = _Families()
        snapshot = self._snapshot()
        families.add_health(self._health(), answered=snapshot is not None)
        if snapshot is not None:
            families.add_daemon(snapshot)
            observation = snapshot.observation
            known = observation.rank_facts()
            series_facts = observation.series_rank_facts()
            stragglers = observation.stragglers()
            ranks = self._labelling.assign(observation.ranks)
            families.add_untraced(labels for rank in ranks for labels in rank.untraced())
            for rank in ranks:
                facts = known.get(rank.rank.key)
                families.add_rank(rank, facts.last_record_ns if facts else 0)
                for entry, labels in rank.series():
                    families.add_series(rank.rank, entry, labels)
                    key = rank.rank.key, series_key(rank.rank.key, entry.info)
                    series = series_facts.get(key)
                    if series is not None:
                        families.add_facts(series, labels, snapshot.exemplars.get(key, {}))
                        families.add_straggler(series, labels, stragglers.get(key, 0.0))
        return families.all()


class _Families:
    """Every metric family, in the order of the exposition."""

    def __init__(self) -> None:
        gauge, counter, histogram, info = (
            GaugeMetricFamily,
            CounterMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )
        self.occupancy = gauge("swtrace_window_occupancy", "Windows of the pool, by state.")
        self.stall = gauge("swtrace_stall_seconds", "Stall of the last step that was timed, summed over its layers.")
        self.wait_stall = histogram(
            "swtrace_wait_stall_seconds", "How long a receiver's wait was held for its weight. One per wait."
        )
        self.slack = histogram(
            "swtrace_prefetch_slack_seconds", "How long before a receiver's wait its weight was there. One per wait."
        )
        self.broadcast = histogram(
            "swtrace_broadcast_duration_seconds", "From issued to ready: queue and transfer. By role of the rank."
        )
        self.bytes = counter("swtrace_broadcast_bytes", "Payload bytes of all broadcasts that the rank took part in.")
        self.cause = counter("swtrace_stall_cause_seconds", "Stall by proximate cause. Sums to all stall.")
        self.waits = counter("swtrace_waits", "Waits by outcome. Sums to all waits.")
        self.efficiency = gauge(
            "swtrace_prefetch_efficiency_ratio",
            "1 - (stall without its skew) / transfer over the last 64 steps: 1 means that all transfer was hidden.",
        )
        self.straggler = gauge(
            "swtrace_straggler_excess_ratio",
            "Critical-path excess of the rank named as straggler, per step time; 0 for all others.",
        )
        self.steps = counter("swtrace_steps", "Finished forward passes.")
        self.untimed = counter(
            "swtrace_untimed_steps",
            "Finished forward passes without instants, by reason: in no duration, in all counts.",
        )
        self.step_duration = histogram("swtrace_step_duration_seconds", "Forward begin to forward end, by phase.")
        self.prefetch_step = gauge(
            "swtrace_prefetch_step",
            "How many layers ahead broadcasts start: as configured, and as seen in the last step.",
        )
        self.series_bytes = gauge(
            "swtrace_series_bytes", "Weight bytes held on the rank, and what holding all layers would take."
        )
        self.up = gauge("swtrace_rank_up", "1 while the rank's process lives. Gone some minutes after it went down.")
        self.died = gauge(
            "swtrace_rank_died",
            "1 if the rank's process is gone, did not close its ring, and was not stopped together with its run.",
        )
        self.untraced = info(
            "swtrace_rank_untraced", "Shares the series and records nothing of it, as its peers were told, and why."
        )
        self.last_record = gauge(
            "swtrace_rank_last_record_timestamp_seconds", "UNIX time of the newest instant that the rank recorded."
        )
        self.records = counter("swtrace_ring_records", "Records written: delivered, lost or pending.")
        self.lost = counter(
            "swtrace_ring_lost_records", "Records that this daemon came too late for, or found damaged."
        )
        self.pending = gauge("swtrace_ring_pending_records", "Records written and not yet read.")
        self.lag = gauge(
            "swtrace_ring_lag_seconds", "How far what this daemon has read is behind what the rank has written."
        )
        self.problems = gauge(
            "swtrace_ring_problems", "Files in the folder of rings that cannot be read, or that another ring hides."
        )
        self.ready = gauge(
            "swtrace_daemon_ready", "1 while the daemon can read its rings; 0: see /healthz. No old figure is served."
        )
        self.polled = gauge(
            "swtrace_daemon_last_poll_timestamp_seconds", "UNIX time at which the daemon last read its rings."
        )
        self.poll_errors = counter("swtrace_daemon_poll_errors", "How often reading all rings failed.")
        self.exported = counter("swtrace_spans_exported", "Spans that a collector took.")
        self.dropped = counter("swtrace_spans_dropped", "Spans of sampled steps that no collector took, by reason.")
        self.build = info("swtrace_build", "The daemon's version.")
        self.series = info("swtrace_series", "What a series is, and where it runs.")
        self.refused = info("swtrace_series_refused", "Asked for and not shared, with the reason.")

    def all(self) -> tuple[Metric, ...]:
        return tuple(vars(self).values())

    def add_health(self, health: Health, *, answered: bool) -> None:
        """Add what holds whether or not there is a snapshot."""
        _add(self.build, {"version": __version__, "python_version": platform.python_version()}, 1)
        _add(self.ready, {}, int(answered and not health.trouble))
        _add(self.polled, {}, health.polled_realtime_ns / 1e9)
        _add(self.poll_errors, {}, health.poll_errors)

    def add_daemon(self, snapshot: Snapshot) -> None:
        _add(self.problems, {}, len(snapshot.observation.problems))
        _add(self.exported, {}, snapshot.spans.exported)
        for reason, spans in snapshot.spans.dropped.items():
            _add(self.dropped, {"reason": str(reason)}, spans)

    def add_untraced(self, told: Iterable[Labels]) -> None:
        """Add the ranks without records: every peer names them, one sample each is enough."""
        for labels in {tuple(labels.items()): labels for labels in told}.values():
            _add(self.untraced, labels, 1)

    def add_rank(self, rank: LabelledRank, last_record_ns: int) -> None:
        observed, labels = rank.rank, rank.labels
        ring = observed.ring
        _add(self.up, labels, int(ring.alive))
        _add(self.died, labels, int(observed.died))
        if last_record_ns > 0:
            offset_ns = observed.run_began_ns if observed.simulated else observed.unix_offset_ns
            _add(self.last_record, labels, (last_record_ns + offset_ns) / 1e9)
        _add(self.records, labels, ring.statistics.written)
        _add(self.lost, {**labels, "reason": "lapped"}, ring.statistics.lapped)
        _add(self.lost, {**labels, "reason": "damaged"}, ring.statistics.damaged)
        _add(self.pending, labels, ring.statistics.pending)
        _add(self.lag, labels, ring.lag_ns / 1e9)
        for refused in rank.refused():
            _add(self.refused, refused, 1)

    def add_series(self, rank: ObservedRank, entry: SeriesEntry, labels: Labels) -> None:
        """Add what the ring's tables say."""
        info, identity = entry.info, rank.identity
        states = Counter(window.state for window in entry.windows)
        for occupancy in Occupancy:
            _add(self.occupancy, {**labels, "state": str(occupancy)}, states[occupancy])
        _add(self.prefetch_step, {**labels, "kind": "configured"}, info.prefetch_step)
        _add(self.series_bytes, {**labels, "kind": "owned"}, info.owned_bytes)
        _add(self.series_bytes, {**labels, "kind": "windows"}, info.window_bytes)
        _add(self.series_bytes, {**labels, "kind": "replicated"}, info.replicated_bytes)
        about = {
            "run_id": identity.run_id,
            "host": identity.host,
            "model": identity.model,
            "swtrace_version": identity.version,
            "kind": info.kind,
            "transport": info.transport,
            "windows": info.windows,
            "clock": info.clock,
            "start_layer": str(info.start_layer),
            "num_layers": str(info.num_layers),
            "group_size": str(len(info.group_ranks)),
            "rank_in_group": str(info.rank_in_group),
        }
        _add(self.series, about | labels, 1)

    def add_facts(self, facts: SeriesRankFacts, labels: Labels, slowest: BucketExemplars) -> None:
        """Add what the ledger says."""
        totals = facts.totals
        if facts.last_stall_ns is not None:
            _add(self.stall, labels, facts.last_stall_ns / 1e9)
        _add_histogram(self.wait_stall, labels, totals.stall, slowest)
        _add_histogram(self.slack, labels, totals.slack)
        _add_histogram(self.broadcast, {**labels, "role": "source"}, totals.sent_duration)
        _add_histogram(self.broadcast, {**labels, "role": "receiver"}, totals.received_duration)
        _add(self.bytes, labels, totals.bytes)
        for cause, cause_ns in totals.cause_ns.items():
            _add(self.cause, {**labels, "cause": str(cause)}, cause_ns / 1e9)
        for outcome, waits in totals.waits.items():
            _add(self.waits, {**labels, "outcome": str(outcome)}, waits)
        if facts.recent.efficiency is not None:
            _add(self.efficiency, labels, facts.recent.efficiency)
        _add(self.steps, labels, totals.steps)
        for reason, steps in totals.untimed_steps.items():
            _add(self.untimed, {**labels, "reason": reason}, steps)
        for phase, durations in totals.step_duration.items():
            # Five phases of 21 samples would be half of an exposition, and most ranks ever run two.
            if durations.count:
                _add_histogram(self.step_duration, {**labels, "phase": phase}, durations)
        if facts.effective_prefetch_step is not None:
            _add(self.prefetch_step, {**labels, "kind": "effective"}, facts.effective_prefetch_step)

    def add_straggler(self, facts: SeriesRankFacts, labels: Labels, share: float) -> None:
        """Add whether the rank holds the others up, where critical paths are known: not across hosts."""
        if facts.recent.path_steps:
            _add(self.straggler, labels, share)


def _add(family: Metric, labels: Mapping[str, str], value: float) -> None:
    """Add one sample. Families are given label names by their samples: only some carry a run id."""
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    family.add_sample(family.name + suffix, dict(labels), value)


def _add_histogram(
    family: Metric,
    labels: Mapping[str, str],
    distribution: Distribution,
    exemplars: Mapping[int, WaitExemplar] = MappingProxyType({}),
) -> None:
    cumulative = 0
    bounds = [repr(bound_ns / 1e9) for bound_ns in distribution.bounds_ns]
    for bucket, (bound, count) in enumerate(zip((*bounds, "+Inf"), distribution.counts, strict=True)):
        cumulative += count
        exemplar = _exemplar(exemplars[bucket]) if bucket in exemplars else None
        family.add_sample(family.name + "_bucket", {**labels, "le": bound}, cumulative, exemplar=exemplar)
    family.add_sample(family.name + "_count", dict(labels), cumulative)
    family.add_sample(family.name + "_sum", dict(labels), distribution.sum_ns / 1e9)


def _exemplar(wait: WaitExemplar) -> Exemplar:
    """Return a wait as OpenMetrics carries it; the text format has no place for it."""
    labels = {"trace_id": wait.trace_id, "layer": str(wait.layer)}
    return Exemplar(labels, wait.stall_ns / 1e9, wait.unix_ns / 1e9)
