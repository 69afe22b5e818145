"""Exported metrics equal a scrape, and a collector that fails harms nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from swtrace.trace.identity import UntracedRank
from tests.support.daemon_command import DaemonCommand, daemon
from tests.support.metric_receiver import MetricReceiver, Samples
from tests.support.patience import eventually
from tests.support.recorded_run import RecordedRun, series_info
from tests.support.span_receiver import collector

OF_THE_MOMENT = {"swtrace_daemon_last_poll_timestamp_seconds", "swtrace_metric_exports_total"}
"""Metrics that differ between two moments even if no rank does anything."""


@pytest.fixture
def metrics() -> Iterator[MetricReceiver]:
    """A receiver of metrics."""
    receiver = MetricReceiver()
    yield receiver
    receiver.close()


def scraped(command: DaemonCommand) -> Samples:
    """Return a scrape's samples."""
    return {
        (sample.name, frozenset((label, text) for label, text in sample.labels.items() if text)): sample.value
        for family in parse_text(command.client.get("/metrics").text)
        for sample in family.samples
    }


def steady(samples: Samples) -> Samples:
    """Return the samples that stay equal while no rank does anything."""
    return {key: value for key, value in samples.items() if key[0] not in OF_THE_MOMENT}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_exported_values_equal_a_scrape(
    tmp_path: Path, run: RecordedRun, metrics: MetricReceiver, protocol: str
) -> None:
    """Through a real collector, by either protocol, every sample arrives as the scrape of that moment has it."""
    run.recorders[0].add_series(
        series_info(0, name="mlp.down_proj", refused="different shapes", window_count=0, owned_layers=0)
    )
    run.recorders[1].add_series(series_info(1, name="mlp.up_proj", untraced=(UntracedRank(0, "no room"),)))
    with collector(tmp_path, metrics) as (grpc, http):
        endpoint = grpc if protocol == "grpc" else http
        with daemon(
            run.directory,
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_TRACES_EXPORTER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_METRIC_EXPORT_INTERVAL="600000",
        ) as command:
            eventually(lambda: command.metric("swtrace_steps_total") == 20, "both ranks' steps")
            scrape = scraped(command)
            assert command.end() == ""
        (export,) = metrics.wait_for(1)
    assert steady(export.samples()) == steady(scrape)
    assert export.samples().keys() == scrape.keys()
