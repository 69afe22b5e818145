"""The delivery of spans to a collector counts every loss and blocks nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from swtrace.ledger.facts import StepFacts
from swtrace.spans.delivery import DropReason, SpanExport, make_span_sink
from swtrace.spans.environment import SpanSettings
from swtrace.spans.step_spans import span_count
from swtrace.spans.traces import Sampling
from tests.support.finished_steps import origins
from tests.support.patience import eventually, patience
from tests.support.span_receiver import free_port


class KeepingExporter(SpanExporter):
    """An exporter that keeps the spans. It can be blocked or made to fail."""

    def __init__(self, *, fails: bool = False) -> None:
        """Accept spans at once, unless blocked."""
        self.batches: list[tuple[ReadableSpan, ...]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.entered = threading.Event()
        self.fails = fails

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep the batch."""
        self.entered.set()
        self.may_go.wait(patience())
        if self.fails:
            raise ConnectionError("no collector")
        self.batches.append(tuple(spans))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Release blocked exports."""
        self.may_go.set()


def test_every_span_is_exported(steps: tuple[StepFacts, ...]) -> None:
    """Closing exports what is queued, in batches of the allowed size, and nothing is dropped."""
    exporter = KeepingExporter()
    export = SpanExport([exporter], Sampling(), max_batch=16, delay_s=60)
    for step in steps:
        export.offer(step, origins(0, 1))
    export.close(30)
    total = sum(span_count(step) for step in steps)
    statistics = export.statistics()
    assert sum(len(batch) for batch in exporter.batches) == statistics.exported == total
    assert max(len(batch) for batch in exporter.batches) <= 16
    assert (sum(statistics.dropped.values()), statistics.queued) == (0, 0)


def test_spans_leave_without_a_full_batch(steps: tuple[StepFacts, ...]) -> None:
    """A batch that does not fill is sent after the delay."""
    exporter = KeepingExporter()
    export = SpanExport([exporter], Sampling(), max_batch=10_000, delay_s=0.01)
    export.offer(steps[1], origins(0, 1))
    eventually(lambda: export.statistics().exported == span_count(steps[1]), "the batch")
    export.close(30)


def test_full_queue_drops_whole_steps_and_counts_them(steps: tuple[StepFacts, ...]) -> None:
    """When the collector does not keep up, whole steps are dropped and counted, and offering does not block."""
    exporter = KeepingExporter()
    exporter.may_go.clear()
    size = span_count(steps[1])
    export = SpanExport([exporter], Sampling(), max_queue=3 * size, max_batch=size, delay_s=0)
    export.offer(steps[1], origins(0, 1))
    assert exporter.entered.wait(patience())
    for step in steps[2:]:
        export.offer(step, origins(0, 1))
    statistics = export.statistics()
    assert statistics.queued == 3 * size
    assert statistics.dropped[DropReason.QUEUE_FULL] == (len(steps) - 2 - 2) * size
    exporter.may_go.set()
    export.close(30)
    assert export.statistics().exported == 3 * size
    kept = {span.context.trace_id for batch in exporter.batches for span in batch if span.context}
    assert len(kept) == 3


def test_failed_export_is_counted(steps: tuple[StepFacts, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Spans that an exporter cannot deliver count as failed, and the thread goes on."""
    caplog.set_level(logging.CRITICAL)
    export = SpanExport([KeepingExporter(fails=True)], Sampling(), delay_s=0)
    export.offer(steps[1], origins(0, 1))
    eventually(lambda: export.statistics().queued == 0, "the first failure")
    export.offer(steps[2], origins(0, 1))
    export.close(30)
    statistics = export.statistics()
    assert statistics.dropped[DropReason.EXPORT_FAILED] == span_count(steps[1]) + span_count(steps[2])
    assert (statistics.exported, statistics.queued) == (0, 0)


def test_shutdown_is_bounded_and_counts_what_is_left(steps: tuple[StepFacts, ...]) -> None:
    """A hanging collector does not delay the end: remaining spans count as dropped by shutdown."""
    exporter = KeepingExporter()
    exporter.may_go.clear()
    export = SpanExport([exporter], Sampling(), delay_s=0)
    for step in steps:
        export.offer(step, origins(0, 1))
    export.close(0.05)
    statistics = export.statistics()
    assert statistics.dropped[DropReason.SHUTDOWN] == sum(span_count(step) for step in steps)
    assert statistics.queued == 0
    export.offer(steps[0], origins(0, 1))
    assert export.statistics().dropped[DropReason.SHUTDOWN] > statistics.dropped[DropReason.SHUTDOWN]


def test_unsampled_steps_are_no_drops(steps: tuple[StepFacts, ...]) -> None:
    """Steps that are not sampled are counted as such, and their spans are not counted."""
    export = SpanExport([KeepingExporter()], Sampling(share=0))
    for step in steps:
        export.offer(step, origins(0, 1))
    export.close(30)
    statistics = export.statistics()
    assert statistics.unsampled_steps == len(steps)
    assert (statistics.exported, sum(statistics.dropped.values())) == (0, 0)


def test_dead_collector_does_not_hold_up_who_offers(
    steps: tuple[StepFacts, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Offering a step takes no longer if the collector refuses connections."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    export = make_span_sink(SpanSettings(exporters=("otlp",), max_queue=500, delay_s=0))
    living = SpanExport([KeepingExporter()], Sampling(), max_queue=500, delay_s=0)
    spent = {}
    for name, sink in (("dead", export), ("living", living), ("dead again", export)):
        begin = time.monotonic()
        for _ in range(20):
            for step in steps:
                sink.offer(step, origins(0, 1))
        spent[name] = time.monotonic() - begin
    assert spent["dead again"] < 20 * spent["living"] + patience(1)
    export.close(0.05)
    living.close(30)
    statistics = export.statistics()
    total = 2 * 20 * sum(span_count(step) for step in steps)
    assert sum(statistics.dropped.values()) == total
    assert (statistics.exported, statistics.queued) == (0, 0)
