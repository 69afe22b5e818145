"""Spans of a daemon reach a real collector, and a collector that fails harms nothing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from swtrace.spans.step_spans import STEP, TRANSFER, WAIT
from swtrace.spans.traces import trace_id
from tests.support.daemon_command import daemon
from tests.support.patience import eventually
from tests.support.recorded_run import SPANS_PER_STEP, RecordedRun
from tests.support.span_receiver import ReceivedSpan, SpanReceiver, collector, free_port

ATTRIBUTES = {
    "run_id",
    "rank",
    "series",
    "layer",
    "step",
    "source_rank",
    "window",
    "bytes",
    "clock",
    "stall_ns",
    "slack_ns",
    "transfer_ns",
}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_real_collector_gets_a_step_of_all_ranks_as_one_trace(
    tmp_path: Path, run: RecordedRun, receiver: SpanReceiver, protocol: str
) -> None:
    """Through a real collector, by either protocol, a step's spans of all ranks arrive in one trace and nest."""
    with collector(tmp_path, receiver) as (grpc, http):
        endpoint = grpc if protocol == "grpc" else http
        with daemon(
            run.directory, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol
        ) as command:
            run.write(3)
            sent = 3 * SPANS_PER_STEP - 2  # layer 0 of the first step was prefilled
            spans = receiver.wait_for(sent)
            # The receiver has them before the daemon gets the acknowledgement.
            eventually(lambda: command.metric("swtrace_spans_exported_total") == sent, "all spans are counted")
    assert len(spans) == sent
    assert_one_trace(spans, step=2)
    anchor_error_ns = 1_000_000_000
    ends = [span.end_ns for span in spans if span.name == STEP]
    assert abs(max(ends) - (time.time_ns() - time.monotonic_ns() + run.begin_ns(2) + run.step_ns)) < anchor_error_ns


def assert_one_trace(received: tuple[ReceivedSpan, ...], step: int) -> None:
    """Fail unless the step's spans are one trace with correct parents, links, times and attributes."""
    spans = [span for span in received if span.attributes["swtrace.step"] == step]
    assert {span.trace_id for span in spans} == {trace_id("run-1", step).to_bytes(16, "big")}
    assert Counter((span.name, span.attributes["swtrace.rank"]) for span in spans) == {
        (name, rank): count for rank in (0, 1) for name, count in ((STEP, 1), (TRANSFER, 5), (WAIT, 5))
    }
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        rank = span.attributes["swtrace.rank"]
        assert span.resource["service.name"] == "swtrace"
        assert span.resource["service.instance.id"] == f"run-1/{rank}"
        if span.name == STEP:
            assert span.parent_span_id == b""
            continue
        parent = by_id[span.parent_span_id]
        assert (parent.name, parent.attributes["swtrace.rank"]) == (STEP, rank)
        inside = parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns
        assert inside or (span.name, span.attributes["swtrace.crosses_steps"]) == (TRANSFER, True)
        for link in span.links:
            assert by_id[link].name == TRANSFER
            assert by_id[link].attributes["swtrace.layer"] == span.attributes["swtrace.layer"]
            assert (by_id[link].attributes["swtrace.rank"] == rank) is (span.name == WAIT)
    assert sum(bool(span.links) for span in spans) == 15
    assert {name.removeprefix("swtrace.") for span in spans for name in span.attributes} >= ATTRIBUTES


def test_dead_collector_slows_nothing(run: RecordedRun) -> None:
    """Without a collector, draining and scraping continue, drops are counted, and shutdown is bounded."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "1",
    }
    with daemon(run.directory, **settings) as command:
        for _ in range(10):
            run.write(20)
            assert command.metric("swtrace_ring_pending_records") == 0
            assert command.metric("swtrace_steps_total", rank="0") == run.steps
        assert command.metric("swtrace_spans_dropped_total", reason="queue_full") > 0
        assert command.metric("swtrace_spans_exported_total") == 0
        command.end()
        assert command.process.returncode == 0


def test_daemons_agree_on_ids_without_talking(run: RecordedRun, receiver: SpanReceiver) -> None:
    """Two daemons export the same step under the same ids."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "1"}
    with daemon(run.directory, **settings), daemon(run.directory, **settings):
        run.write(1)
        spans = receiver.wait_for(2 * (SPANS_PER_STEP - 2))
    assert set(Counter((span.trace_id, span.span_id, span.parent_span_id) for span in spans).values()) == {2}


@pytest.mark.parametrize(("status", "somewhere"), [(301, True), (302, False), (307, True), (308, True)])
def test_spans_that_a_collector_redirects_are_dropped_and_counted(
    run: RecordedRun, receiver: SpanReceiver, status: int, *, somewhere: bool
) -> None:
    """A redirect delivers nothing: spans are dropped with a reason, and the log names the target."""
    redirecting = SpanReceiver(status, f"{receiver.endpoint}/v1/traces" if somewhere else None)
    try:
        with daemon(run.directory, OTEL_EXPORTER_OTLP_ENDPOINT=redirecting.endpoint) as running:
            run.write(5)
            eventually(
                lambda: running.metric("swtrace_spans_dropped_total", reason="export_failed") > 0, "spans to be dropped"
            )
            assert running.metric("swtrace_spans_exported_total") == 0
            said = running.end()
    finally:
        redirecting.close()
    assert receiver.spans() == ()
    assert said.count("the collector redirects") == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in said
