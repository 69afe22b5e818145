"""The encoding of spans without an object per span equals OpenTelemetry's, byte for byte."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource

from swtrace.ledger.facts import StepFacts
from swtrace.spans.delivery import make_span_sink
from swtrace.spans.encoding import batches
from swtrace.spans.environment import SpanSettings
from swtrace.spans.step_spans import SpanTable, StepSpans, span_count
from swtrace.trace.request_link import RequestLink
from swtrace.trace.schema import Clock, StepFlag, Untimed
from tests.support.finished_steps import finished_steps, origins
from tests.support.recorded_run import RecordedRun, series_info
from tests.support.span_receiver import SpanReceiver

SEEDS = range(20)


def whole(directory: Path) -> None:
    """Write steps whose first layers were issued in the step before."""
    run = RecordedRun(directory)
    run.write(3)
    run.close()


def aborted(directory: Path) -> None:
    """Write a step that ended early on all ranks."""
    run = RecordedRun(directory)
    run.write(2, aborted=True)
    run.close()


def partial(directory: Path) -> None:
    """Write a step that one rank never ended, and one of which one rank has no record."""
    run = RecordedRun(directory)
    run.write(1)
    run.write_rank(0, 1)
    run.write_rank(1, 1, ended=False)
    run.write_rank(0, 2)


def untimed(directory: Path) -> None:
    """Write a step on a device's clock that is untimed on one rank."""
    run = RecordedRun(directory, clock=Clock.DEVICE)
    run.write(1)
    run.write_rank(0, run.steps)
    run.write_rank_untimed(1, Untimed.BUSY)
    run.close()


def traced(directory: Path) -> None:
    """Write steps whose batches have different numbers of traced requests on their ranks."""
    run = RecordedRun(directory)
    for rank, spans in enumerate((3, 1)):
        run.links = tuple(RequestLink(1 << 127 | 7, span) for span in range(1, spans + 1))
        run.write_rank(rank, 0)
    run.steps, run.links = 1, ()
    run.write(1)
    run.close()


def simulated(directory: Path) -> None:
    """Write steps on a simulated clock."""
    run = RecordedRun(directory, clock=Clock.VIRTUAL)
    run.write(2)
    run.close()


def two_series(directory: Path) -> None:
    """Write steps of two series whose ranks are the same."""
    run = RecordedRun(directory)
    run.write(1)
    first = run.series
    run.series = [
        recorder.add_series(series_info(rank, name="mlp.down_proj")) for rank, recorder in enumerate(run.recorders)
    ]
    run.write_rank(0, 1)
    run.write_rank(1, 1)
    run.series = first
    run.close()


def hostile(step: StepFacts, chance: random.Random) -> StepFacts:
    """Return the step with numbers and flags that no rank would write, but that a damaged ring may contain."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if not isinstance(value, np.ndarray):
            continue
        made = value.copy()
        for index in np.ndindex(made.shape):
            if chance.random() < 0.5:
                made[index] = (
                    chance.random() < 0.5
                    if made.dtype == np.bool_
                    else chance.choice(
                        [np.iinfo(made.dtype).min, np.iinfo(made.dtype).max, 0, 1, 127, chance.getrandbits(7)]
                    )
                )
        fields[field.name] = made
    return dataclasses.replace(step, **fields)


def assert_encoded_alike(spans: list[StepSpans], size: int) -> None:
    """Compare every batch with what OpenTelemetry's encoder makes of the same spans."""
    for batch in batches(spans, size):
        expected = encode_spans(list(batch))
        sent = batch.request()
        assert ExportTraceServiceRequest.FromString(sent) == expected
        assert sent == expected.SerializeToString()


@pytest.mark.parametrize("write", [whole, aborted, partial, untimed, traced, simulated, two_series])
@pytest.mark.parametrize("ranks", [(0, 1), (1,)], ids=["all ranks", "one host of two"])
def test_encoding_is_opentelemetrys(write: Any, ranks: tuple[int, ...], tmp_path: Path) -> None:
    """Ids, links, times, attributes, status, flags and resource are the same, in batches of any size."""
    write(tmp_path)
    steps = finished_steps(tmp_path, flush=True)
    spans = [StepSpans(step, origins(*ranks)) for step in steps]
    assert sum(map(len, spans)) > 5
    for size in (1, 7, 10_000):
        assert_encoded_alike(spans, size)


@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_numbers_are_encoded_alike(seed: int, tmp_path: Path) -> None:
    """Any number of any size, negative ones included, any flag and any instant are encoded as OpenTelemetry would."""
    whole(tmp_path)
    chance = random.Random(seed)  # noqa: S311
    steps = [hostile(step, chance) for step in finished_steps(tmp_path)]
    offset_ns = chance.choice([0, 10**18, -(10**18), -(1 << 70), (1 << 63) - 1, 1 << 63, 1 << 65])
    known = origins(0, 1, offset_ns=offset_ns)
    for step in steps:
        spans = StepSpans(step, known)
        assert len(spans) == span_count(step)
        for span, (begin, end) in zip(spans, [(span.start_time, span.end_time) for span in spans], strict=True):
            assert begin is not None
            assert end is not None
            assert 0 <= begin <= end < 1 << 63, span.name
    assert_encoded_alike([StepSpans(step, known) for step in steps], 10_000)


def test_many_ranks_share_a_resource(tmp_path: Path) -> None:
    """Ranks with equal resources are sent as one resource, in the order of their spans."""
    whole(tmp_path)
    same = {
        key: dataclasses.replace(origin, resource=Resource({"service.name": "x"}, "https://schema.example"))
        for key, origin in origins(0, 1).items()
    }
    spans = [StepSpans(step, same) for step in finished_steps(tmp_path)]
    assert_encoded_alike(spans, 10_000)
    (batch,) = batches(spans, 10_000)
    assert len(ExportTraceServiceRequest.FromString(batch.request()).resource_spans) == 1


def test_an_aborted_step_is_an_error_in_the_encoding(tmp_path: Path) -> None:
    """The status is encoded with its text for the ranks that aborted, and is unset for the others."""
    whole(tmp_path)
    step = finished_steps(tmp_path)[1]
    flags = step.step_flags.copy()
    flags[1] |= StepFlag.ABORTED
    spans = StepSpans(dataclasses.replace(step, step_flags=flags), origins(0, 1))
    assert_encoded_alike([spans], 10_000)


class _GrpcReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: ARG002, N802
        self.requests.append(request)
        return ExportTraceServiceResponse()


@pytest.fixture
def grpc_receiver() -> Iterator[tuple[_GrpcReceiver, str]]:
    """A receiver of OTLP over gRPC, and its endpoint."""
    receiver = _GrpcReceiver()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the creation of span objects fail."""

    def refuse(*_: object) -> None:
        raise AssertionError("a span was made as an object")

    monkeypatch.setattr(SpanTable, "spans", refuse)


def send(endpoint: str, protocol: str, step: StepFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export a step as the daemon does."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    export = make_span_sink(SpanSettings(exporters=("otlp",), protocol=protocol))
    export.offer(step, origins(0, 1))
    export.close(30)
    assert export.statistics().exported == span_count(step)


@pytest.mark.usefixtures("no_objects")
def test_http_sends_what_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter for HTTP sends spans without making a span object."""
    whole(tmp_path)
    step = finished_steps(tmp_path)[1]
    receiver = SpanReceiver()
    send(receiver.endpoint, "http/protobuf", step, monkeypatch)
    receiver.close()
    assert len(receiver.spans()) == span_count(step)


@pytest.mark.usefixtures("no_objects")
def test_grpc_sends_what_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grpc_receiver: tuple[_GrpcReceiver, str]
) -> None:
    """The exporter for gRPC sends the same request."""
    whole(tmp_path)
    step = finished_steps(tmp_path)[1]
    receiver, endpoint = grpc_receiver
    send(endpoint, "grpc", step, monkeypatch)
    (request,) = receiver.requests
    (batch,) = batches([StepSpans(step, origins(0, 1))], 10_000)
    assert request.SerializeToString() == batch.request()
