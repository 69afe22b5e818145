"""A receiver of metrics for tests, which shows them as a scrape of Prometheus would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, NumberDataPoint

from tests.support.patience import eventually
from tests.support.span_receiver import Receiver, attributes_of

_UNITS = {"s": "seconds", "By": "bytes", "1": "ratio"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels. An empty label is no label."""


@dataclass(frozen=True)
class ReceivedExport:
    """One export of all metrics."""

    metrics: tuple[Metric, ...]
    resource: dict[str, object]

    def samples(self) -> Samples:
        """Return what Prometheus stores, given these metrics over OTLP."""
        found: Samples = {}
        for metric in self.metrics:
            for name, labels, value in _samples(metric):
                key = name, frozenset((label, text) for label, text in labels.items() if text)
                assert key not in found, key
                found[key] = value
        return found


class MetricReceiver(Receiver):
    """Collects the metrics of every request."""

    def __init__(self, status: int = 200, location: str | None = None) -> None:
        """Listen as a :class:`Receiver`."""
        self._exports: list[ReceivedExport] = []
        super().__init__(status, location)

    def take(self, body: bytes) -> None:
        """Keep the metrics of a request."""
        for of_resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            metrics = tuple(metric for scope in of_resource.scope_metrics for metric in scope.metrics)
            self._exports.append(ReceivedExport(metrics, attributes_of(of_resource.resource.attributes)))

    def exports(self) -> tuple[ReceivedExport, ...]:
        """Return what has arrived so far."""
        with self._lock:
            return tuple(self._exports)

    def wait_for(self, count: int) -> tuple[ReceivedExport, ...]:
        """Return the exports once at least ``count`` have arrived."""
        eventually(lambda: len(self.exports()) >= count, f"{count} exports of metrics")
        return self.exports()


def prometheus_name(metric: Metric) -> str:
    """Return the name that Prometheus translates a metric's name, unit and kind to."""
    words = metric.name.split(".")
    unit = "" if metric.unit.startswith("{") else _UNITS.get(metric.unit, metric.unit)
    kind = metric.WhichOneof("data")
    if unit and unit not in words and (unit != "ratio" or kind == "gauge"):
        words.append(unit)
    return "_".join([*words, "total"] if kind == "sum" else words)


def _samples(metric: Metric) -> Iterator[tuple[str, dict[str, str], float]]:
    name = prometheus_name(metric)
    if metric.WhichOneof("data") == "histogram":
        assert metric.histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        for point in metric.histogram.data_points:
            labels = {label: str(text) for label, text in attributes_of(point.attributes).items()}
            bounds = (*map(repr, point.explicit_bounds), "+Inf")
            for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
                yield f"{name}_bucket", {**labels, "le": bound}, count
            yield f"{name}_count", labels, point.count
            yield f"{name}_sum", labels, point.sum
        return
    points = metric.gauge.data_points if metric.WhichOneof("data") == "gauge" else metric.sum.data_points
    if metric.WhichOneof("data") == "sum":
        assert metric.sum.is_monotonic
        assert metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for point in points:
        yield name, {label: str(text) for label, text in attributes_of(point.attributes).items()}, number(point)


def number(point: NumberDataPoint) -> float:
    """Return the value of a point."""
    return point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
