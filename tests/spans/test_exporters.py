"""OpenTelemetry's standard variables reach the exporter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.spans.delivery import NoSpans, make_span_sink
from swtrace.spans.environment import SpanSettings
from swtrace.spans.step_spans import span_count
from tests.support.finished_steps import origins
from tests.support.span_receiver import SpanReceiver


@pytest.fixture
def receiver() -> Iterator[SpanReceiver]:
    """A receiver of OTLP over HTTP."""
    receiver = SpanReceiver()
    yield receiver
    receiver.close()


def test_standard_variables_reach_the_exporter(
    steps: tuple[StepFacts, ...], receiver: SpanReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, headers, compression and resource attributes are OpenTelemetry's own variables."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    export = make_span_sink(SpanSettings.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}))
    export.offer(steps[1], origins(0, 1))
    export.close(30)
    assert len(receiver.spans()) == span_count(steps[1])
    assert receiver.headers[0]["x-tenant"] == "blue"
    assert receiver.headers[0]["content-encoding"] == "gzip"


def test_no_exporter_no_spans(steps: tuple[StepFacts, ...]) -> None:
    """Without a collector nothing is built, exported or dropped."""
    sink = make_span_sink(SpanSettings())
    assert isinstance(sink, NoSpans)
    sink.offer(steps[0], origins(0, 1))
    statistics = sink.statistics()
    assert (statistics.exported, statistics.queued, sum(statistics.dropped.values())) == (0, 0, 0)
