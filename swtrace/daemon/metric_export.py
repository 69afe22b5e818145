"""Export all metrics to a collector, over OTLP: the same families, labels and values as ``/metrics``.

A thread reads the rows of :data:`~swtrace.daemon.collector.METRICS` at every interval and passes them to
OpenTelemetry's exporter. Counters and histograms are already totals, so no instruments count again. A collector that
is away or slow delays only this thread; each failed export is counted and the next one sends newer totals.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
from opentelemetry.sdk.resources import Resource

from swtrace.daemon.collector import METRICS, Metric, MetricRow, Rows
from swtrace.daemon.exemplars import WaitExemplar
from swtrace.daemon.metric_settings import MetricSettings
from swtrace.daemon.snapshot import ExportOutcome
from swtrace.errors import SettingsError
from swtrace.ledger.facts import Distribution
from swtrace.otel_variables import Signal, exporter_arguments
from swtrace.spans.delivery import CANCELLED_S
from swtrace.spans.origins import process_resource
from swtrace.spans.step_spans import SCOPE
from swtrace.version import __version__

_log = logging.getLogger(__name__)

_UNITS = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}
"""UCUM's units, by suffix of a name."""
_UNKNOWN: Any = None
"""The extremes of a distribution, which OTLP may leave out."""
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def otlp_name(metric: Metric[Any]) -> str:
    """Return the metric's name in OTLP: with dots, and without what kind and unit already say.

    Prometheus' translation of kind, unit and this name gives the metric's own name again. ``bytes`` stays, because
    it is also what the metric is about; the translation does not repeat it.
    """
    name = metric.name
    for suffix in ("_total", "_seconds", "_ratio"):
        name = name.removesuffix(suffix)
    return name.replace("_", ".")


def otlp_unit(metric: Metric[Any]) -> str:
    """Return the metric's unit in UCUM's notation."""
    for suffix, unit in _UNITS.items():
        if metric.name.removesuffix("_total").endswith(suffix):
            return unit
    return f"{{{metric.counts}}}" if metric.counts else ""


def metrics_data(rows: Rows, resource: Resource, *, started_ns: int, now_ns: int) -> MetricsData:
    """Return the metrics of these rows as OpenTelemetry's exporters take them.

    Args:
        rows: all rows of one moment.
        resource: the daemon's.
        started_ns: UNIX time of the daemon's start. Totals begin there, or when a rank's ring was made later.
        now_ns: UNIX time of the rows.
    """
    metrics = [
        OtlpMetric(otlp_name(metric), metric.help, otlp_unit(metric), data)
        for metric in METRICS
        if (data := _data(metric, rows.get(metric.about, ()), started_ns, now_ns)).data_points
    ]
    scope = ScopeMetrics(SCOPE, metrics, SCOPE.schema_url or "")
    return MetricsData([ResourceMetrics(resource, [scope], resource.schema_url)])


def _data(metric: Metric[Any], rows: Sequence[MetricRow], started_ns: int, now_ns: int) -> Gauge | Histogram | Sum:
    points = [point for row in rows for point in _points(metric, row, started_ns, now_ns)]
    if metric.kind == "histogram":
        return Histogram(points, _CUMULATIVE)
    return Sum(points, _CUMULATIVE, is_monotonic=True) if metric.kind == "counter" else Gauge(points)


def _points(metric: Metric[Any], row: MetricRow, started_ns: int, now_ns: int) -> Iterator[Any]:
    value = metric.value(row)
    if value is None:
        return
    began_ns = min(row.began_ns if metric.since_ring else max(started_ns, row.began_ns), now_ns)
    waits = metric.exemplars(row) if metric.exemplars else {}
    for labels, each in metric.points(row, value):
        # As in Prometheus, an empty label is no label.
        attributes = {name: text for name, text in labels.items() if text}
        if isinstance(each, Distribution):
            yield HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=each.count,
                sum=each.sum_ns / 1e9,
                bucket_counts=each.counts,
                explicit_bounds=[bound_ns / 1e9 for bound_ns in each.bounds_ns],
                min=_UNKNOWN,
                max=_UNKNOWN,
                exemplars=[_exemplar(waits[bucket]) for bucket in sorted(waits)],
            )
        else:
            number = int(each) if isinstance(each, bool) else each
            yield NumberDataPoint(attributes, began_ns, now_ns, number)


def _exemplar(wait: WaitExemplar) -> Exemplar:
    return Exemplar(
        {"layer": str(wait.layer)}, wait.stall_ns / 1e9, wait.unix_ns, int(wait.span_id, 16), int(wait.trace_id, 16)
    )


class MetricExport:
    """The thread that exports metrics at an interval."""

    def __init__(
        self,
        exporters: Sequence[MetricExporter],
        rows: Callable[[], Rows],
        outcomes: dict[ExportOutcome, int],
        resource: Resource,
        *,
        interval_s: float,
        started_ns: int,
    ) -> None:
        """Start the thread.

        Args:
            exporters: each gets all metrics.
            rows: returns the newest rows.
            outcomes: where each export is counted.
            resource: the daemon's.
            interval_s: time between exports, in seconds. The first one comes after one interval.
            started_ns: UNIX time of the daemon's start.
        """
        self._exporters = tuple(exporters)
        self._rows = rows
        self._outcomes = outcomes
        self._resource = resource
        self._interval_s = interval_s
        self._started_ns = started_ns
        self._failing = False
        self._finishing = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="swtrace-metrics", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Export once more, now, and end the thread. Return at once."""
        self._finishing.set()

    def close(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` for the last export, and close the exporters."""
        self.finish()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.warning("the last metrics were not exported within %.1f s", timeout_s)
        for exporter in self._exporters:  # also ends an export that waits for its next retry
            exporter.shutdown(timeout_millis=0)
        self._thread.join(CANCELLED_S)

    def _run(self) -> None:
        with self._reasons_kept():
            while not self._finishing.wait(self._interval_s):
                self._export()
            self._export()

    def _export(self) -> None:
        """Export once, count the outcome, and log it if it differs from the one before."""
        self._reason = ""
        try:
            rows = self._rows()
            data = metrics_data(rows, self._resource, started_ns=self._started_ns, now_ns=time.time_ns())
            results = [exporter.export(data) for exporter in self._exporters]
            failed = any(result is not MetricExportResult.SUCCESS for result in results)
        except Exception as error:  # noqa: BLE001 (an exporter may raise anything, and the next export may succeed)
            failed, self._reason = True, str(error) or type(error).__name__
        self._outcomes[ExportOutcome.FAILED if failed else ExportOutcome.ACCEPTED] += 1
        if failed and not self._failing:
            reason = self._reason or "the exporter gave no reason"
            _log.warning("cannot export metrics (every %g s): %s", self._interval_s, reason)
        elif self._failing and not failed:
            _log.warning("metrics are exported again")
        self._failing = failed

    @contextmanager
    def _reasons_kept(self) -> Iterator[None]:
        """Keep the first message that an exporter logs about an export of this thread, instead of logging each."""
        thread = threading.get_ident()

        def keep(record: logging.LogRecord) -> bool:
            if record.thread != thread:
                return True
            self._reason = self._reason or record.getMessage()
            return False

        names = {kind.__module__ for exporter in self._exporters for kind in type(exporter).__mro__}
        loggers = [logging.getLogger(name) for name in names if name.startswith("opentelemetry.")]
        for logger in loggers:
            logger.addFilter(keep)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(keep)


def make_metric_export(
    settings: MetricSettings,
    rows: Callable[[], Rows],
    outcomes: dict[ExportOutcome, int],
    *,
    port: int,
    started_ns: int,
) -> MetricExport | None:
    """Return the export that the settings ask for; None if they ask for none. ``port`` is the one of ``/metrics``.

    Raises:
        SettingsError: the exporter cannot be made with OpenTelemetry's variables.
    """
    if not settings.exporters:
        return None
    host = socket.gethostname()
    return MetricExport(
        [ConsoleMetricExporter() if name == "console" else _otlp_exporter(settings) for name in settings.exporters],
        rows,
        outcomes,
        # Like a scraper's `instance`: the same after a restart, and another for each daemon of a host.
        process_resource(__version__, f"{host}:{port}", host=host, pid=os.getpid()),
        interval_s=settings.interval_s,
        started_ns=started_ns,
    )


def _otlp_exporter(settings: MetricSettings) -> MetricExporter:
    """Return OpenTelemetry's OTLP exporter. It takes all other settings from its ``OTEL_*`` variables.

    Raises:
        SettingsError: it cannot be made with these variables.
    """
    # Load only what is used: gRPC alone costs 0.1 s and 20 MB.
    try:
        arguments = {"timeout": settings.timeout_s, **exporter_arguments(Signal.METRICS, settings.protocol)}
        if settings.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

            return Grpc(**arguments)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

        return Http(**arguments)
    except Exception as error:  # (the exporters raise many kinds)
        raise SettingsError(f"the OTEL_EXPORTER_OTLP_* settings cannot be used: {error}") from error
