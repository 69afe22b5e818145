"""Exported metrics equal a scrape, and a collector that fails harms nothing."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families as parse_text

from swtrace import __version__
from swtrace.daemon.collector import METRICS, Rows, SnapshotCollector, WatchedRow
from swtrace.daemon.metric_export import metrics_data, otlp_name, otlp_unit
from swtrace.daemon.observer import Observer
from swtrace.observing import HostRings
from swtrace.spans.delivery import NoSpans
from swtrace.trace.identity import UntracedRank
from tests.support.daemon_command import DaemonCommand, daemon
from tests.support.metric_receiver import MetricReceiver, ReceivedExport, Samples
from tests.support.patience import eventually, patience
from tests.support.recorded_run import AS_PLANNED, RecordedRun, series_info
from tests.support.span_receiver import SpanReceiver, collector, free_port

OF_THE_MOMENT = {"swtrace_daemon_last_poll_timestamp_seconds", "swtrace_metric_exports_total"}
"""Metrics that differ between two moments even if no rank does anything."""
ON = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
"""Metrics are exported when the daemon ends."""
OFTEN = {**ON, "OTEL_METRIC_EXPORT_INTERVAL": "20"}


@pytest.fixture
def metrics() -> Iterator[MetricReceiver]:
    """A receiver of metrics."""
    receiver = MetricReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def every_kind(tmp_path: Path) -> Iterator[RecordedRun]:
    """Ten steps on two hosts, for which every metric has a sample."""
    run = RecordedRun(tmp_path / "rings", hosts=("host-a", "host-b"), ahead_ns=1_000_000_000, planned=AS_PLANNED)
    run.write(10)
    run.recorders[0].add_series(
        series_info(0, name="mlp.down_proj", refused="different shapes", window_count=0, owned_layers=0)
    )
    run.recorders[1].add_series(series_info(1, name="mlp.up_proj", untraced=(UntracedRank(0, "no room"),)))
    yield run
    run.close()


def parsed(text: str) -> Samples:
    """Return the samples of an exposition."""
    return {
        (sample.name, frozenset((label, text) for label, text in sample.labels.items() if text)): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def scraped(command: DaemonCommand) -> Samples:
    """Return a scrape's samples."""
    return parsed(command.client.get("/metrics").text)


def steady(samples: Samples) -> Samples:
    """Return the samples that stay equal while no rank does anything."""
    return {key: value for key, value in samples.items() if key[0] not in OF_THE_MOMENT}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_exported_values_equal_a_scrape(
    tmp_path: Path, every_kind: RecordedRun, metrics: MetricReceiver, protocol: str
) -> None:
    """Through a real collector, by either protocol, the last export has every sample as a scrape before it had."""
    with collector(tmp_path, metrics) as (grpc, http):
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": grpc if protocol == "grpc" else http,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        with daemon(every_kind.directory, **ON, **settings) as command:
            every_kind.write(10)
            eventually(lambda: command.metric("swtrace_steps_total") == 20, "both ranks' steps")
            scrape = scraped(command)
            assert command.end() == ""
            assert command.process.returncode == 0
        (export,) = metrics.wait_for(1)
    assert steady(export.samples()) == steady(scrape)
    assert export.samples().keys() == scrape.keys()


def rows_of(directory: Path) -> Rows:
    """Return the rows of all rings of a folder."""
    rings = HostRings(directory)
    observer = Observer(rings, NoSpans())
    observer.start()
    rows = SnapshotCollector(observer.snapshot, observer.health).rows()
    assert observer.stop(patience())
    rings.close()
    return rows


def test_each_sample_of_one_moment_is_equal(every_kind: RecordedRun) -> None:
    """Made from the same rows, both outputs have the same samples, without exception."""
    rows = rows_of(every_kind.directory)
    expected = {
        (sample.name, frozenset((label, text) for label, text in sample.labels.items() if text)): sample.value
        for metric in METRICS
        for sample in metric.family(rows.get(metric.about, ())).samples
    }
    plain = {metric.name for metric in METRICS if metric.kind != "histogram" and metric.about is not WatchedRow}
    assert {name for name, _labels in expected} >= plain
    assert received(rows).samples() == expected


def received(rows: Rows, *, started_ns: int = 1, now_ns: int = 0) -> ReceivedExport:
    """Return rows as a collector receives them."""
    data = metrics_data(rows, Resource({}), started_ns=started_ns, now_ns=now_ns or time.time_ns())
    request = ExportMetricsServiceRequest.FromString(encode_metrics(data).SerializeToString())
    (of_resource,) = request.resource_metrics
    (scope,) = of_resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("swtrace", __version__)
    return ReceivedExport(tuple(scope.metrics), {})


def test_exemplars_name_exported_spans(run: RecordedRun, receiver: SpanReceiver, metrics: MetricReceiver) -> None:
    """The slowest wait of each bucket arrives with its stall, its layer, and the ids of its exported span."""
    settings = {
        **ON,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": metrics.endpoint,
    }
    with daemon(run.directory, **settings) as command:
        run.write(3)
        assert command.end() == ""
    (stalls,) = (metric for metric in metrics.exports()[-1].metrics if metric.name == "swtrace.wait.stall")
    exemplars = [each for stalled in stalls.histogram.data_points for each in stalled.exemplars]
    assert exemplars
    waits = {(span.trace_id, span.span_id): span for span in receiver.spans() if span.name == "swtrace.wait"}
    for each in exemplars:
        wait = waits[each.trace_id, each.span_id]
        assert round(each.as_double * 1e9) == wait.attributes["swtrace.stall_ns"]
        assert each.time_unix_nano == wait.end_ns
        (layer,) = each.filtered_attributes
        assert layer.value.string_value == str(wait.attributes["swtrace.layer"])


def test_totals_begin_with_the_daemon_or_a_later_ring(run: RecordedRun) -> None:
    """A counter starts with the daemon or with a later ring, and the ring's own with the ring; none in the future."""
    rows = rows_of(run.directory)
    ring_ns = run.recorders[0].identity.start_time_ns
    for started_ns, now_ns, expected_ns in (
        (1, ring_ns + 9, ring_ns),
        (ring_ns + 5, ring_ns + 9, ring_ns + 5),
        (1, ring_ns - 5, ring_ns - 5),
    ):
        export = received(rows, started_ns=started_ns, now_ns=now_ns)
        points = {metric.name: point(metric) for metric in export.metrics}
        for name in ("swtrace.steps", "swtrace.wait.stall", "swtrace.ring.lost.records"):
            assert points[name].start_time_unix_nano == expected_ns, name
            assert points[name].time_unix_nano == now_ns
        assert points["swtrace.ring.records"].start_time_unix_nano == min(ring_ns, now_ns)
        assert points["swtrace.daemon.poll.errors"].start_time_unix_nano == min(started_ns, now_ns)


def point(metric: Any) -> Any:
    """Return the first point of a received metric."""
    return getattr(metric, metric.WhichOneof("data")).data_points[0]


def test_documentation_has_the_names_and_units() -> None:
    """docs/metrics.md lists each metric's name and unit in OTLP."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(swtrace_\w+)` \| \w+ \| `([\w.]+)` \|(?: `(\S+)`)? \|", text, re.MULTILINE)
    assert sorted(listed) == sorted((metric.name, otlp_name(metric), otlp_unit(metric)) for metric in METRICS)


def test_the_resource_names_the_daemon(run: RecordedRun, metrics: MetricReceiver) -> None:
    """The resource is the daemon's process, with host and port as its instance; the environment overrides it."""
    for environ, expected in (
        ({}, {"service.name": "swtrace", "service.version": __version__}),
        (
            {"OTEL_SERVICE_NAME": "llama", "OTEL_RESOURCE_ATTRIBUTES": "host.name=other"},
            {"service.name": "llama", "host.name": "other"},
        ),
    ):
        with daemon(run.directory, **ON, OTEL_EXPORTER_OTLP_ENDPOINT=metrics.endpoint, **environ) as command:
            port = command.client.base_url.port
            command.end()
        resource = metrics.exports()[-1].resource
        assert expected.items() <= resource.items()
        assert resource["service.instance.id"] == f"{socket.gethostname()}:{port}"


def test_each_signal_goes_to_its_endpoint(run: RecordedRun, receiver: SpanReceiver, metrics: MetricReceiver) -> None:
    """Endpoints, headers and compression for one signal apply to it alone; an endpoint of a signal is used as it is."""
    settings = {
        **ON,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.endpoint}/tempo/traces",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{metrics.endpoint}/mimir/otlp",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=both",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x-tenant=metrics",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "gzip",
    }
    with daemon(run.directory, **settings) as command:
        run.write(3)
        assert command.end() == ""
    assert (set(receiver.paths), set(metrics.paths)) == ({"/tempo/traces"}, {"/mimir/otlp"})
    assert (receiver.headers[0]["x-tenant"], metrics.headers[0]["x-tenant"]) == ("both", "metrics")
    assert ("content-encoding" in receiver.headers[0], "content-encoding" in metrics.headers[0]) == (False, True)
    assert receiver.spans()
    assert metrics.exports()


@pytest.mark.parametrize(
    ("environ", "spans", "exports"),
    [
        ({}, True, False),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_each_signal_is_switched_by_its_own_variable(
    run: RecordedRun,
    receiver: SpanReceiver,
    metrics: MetricReceiver,
    environ: dict[str, str],
    *,
    spans: bool,
    exports: bool,
) -> None:
    """With an endpoint for all signals, spans are exported by default and metrics on request; one switch stops both."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **environ}
    if exports:
        settings["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] = f"{metrics.endpoint}/v1/metrics"
    with daemon(run.directory, **settings) as command:
        run.write(3)
        assert command.end() == ""
    assert (bool(receiver.spans()), bool(metrics.exports())) == (spans, exports)
    assert set(receiver.paths) <= {"/v1/traces"}


def test_a_collector_that_fails_is_logged_once_until_it_recovers(run: RecordedRun) -> None:
    """Failed exports are counted, the log names the reason once, and says once that exports succeed again."""
    failing = MetricReceiver(status=500)
    try:
        with daemon(run.directory, **OFTEN, OTEL_EXPORTER_OTLP_ENDPOINT=failing.endpoint) as command:
            eventually(lambda: outcomes(command)[1] > 3, "several failures")
            assert outcomes(command)[0] == 0
            failing.status = 200
            eventually(lambda: outcomes(command)[0] > 3, "exports to be accepted")
            lines = command.end().splitlines()
    finally:
        failing.close()
    assert ["cannot export metrics" in line for line in lines] == [True, False]
    assert "500" in lines[0]
    assert "metrics are exported again" in lines[1]


def outcomes(command: DaemonCommand) -> tuple[float, float]:
    """Return the number of accepted and of failed exports."""
    accepted, failed = (command.metric("swtrace_metric_exports_total", outcome=name) for name in ("accepted", "failed"))
    return accepted, failed


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_away_slows_nothing(run: RecordedRun, protocol: str) -> None:
    """Without a collector, scrapes include every step, failures are counted, and the daemon ends in order."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    with daemon(run.directory, **OFTEN, **settings) as command:
        before = run.steps
        for _ in range(5):
            run.write(5)
            assert command.metric("swtrace_steps_total", rank="0") == run.steps - before
        eventually(lambda: outcomes(command)[1] > 1, "failures")
        said = command.end()
    assert command.process.returncode == 0
    assert said.count("\n") == said.count("cannot export metrics") == 1


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_does_not_answer_blocks_neither_scrapes_nor_the_end(run: RecordedRun, protocol: str) -> None:
    """While an export hangs, scrapes are answered; at SIGTERM the daemon waits a few seconds and ends in order."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
            "OTEL_METRIC_EXPORT_TIMEOUT": "3600000",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        with daemon(run.directory, **OFTEN, **settings) as command:
            connection, _address = silent.accept()
            run.write(5)
            assert command.metric("swtrace_steps_total", rank="0") == 5
            assert outcomes(command) == (0, 0)
            said = command.end()
        connection.close()
    assert command.process.returncode == 0
    assert "the last metrics were not exported" in said


def test_metrics_that_a_collector_redirects_count_as_failed(run: RecordedRun, metrics: MetricReceiver) -> None:
    """A redirect delivers nothing: exports fail, and the log names the target and the setting once."""
    redirecting = MetricReceiver(308, f"{metrics.endpoint}/v1/metrics")
    try:
        with daemon(run.directory, **OFTEN, OTEL_EXPORTER_OTLP_ENDPOINT=redirecting.endpoint) as command:
            eventually(lambda: outcomes(command)[1] > 1, "failures")
            assert outcomes(command)[0] == 0
            said = command.end()
    finally:
        redirecting.close()
    assert metrics.exports() == ()
    assert said.count("the collector redirects") == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in said


def test_metrics_of_an_empty_folder_are_the_daemons(tmp_path: Path) -> None:
    """Without ranks, an export has the daemon's own metrics, and no metric without points."""
    export = received(rows_of(tmp_path))
    names = {metric.name for metric in export.metrics}
    assert {"swtrace.daemon.ready", "swtrace.build.info"} <= names
    assert not any(name.startswith(("swtrace.rank", "swtrace.ring.r", "swtrace.wait")) for name in names)
    assert all(point(metric) for metric in export.metrics)
