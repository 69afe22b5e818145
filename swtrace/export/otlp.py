"""Spans of a recorded run, sent to any OpenTelemetry collector after the fact, with the ids of a daemon's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from swtrace.errors import SwtraceError
from swtrace.ledger.facts import StepFacts
from swtrace.spans.origins import Origins
from swtrace.spans.step_spans import step_spans
from swtrace.spans.traces import Sampling

BATCH = 2048


class CollectorError(SwtraceError):
    """A collector did not take the spans."""


@dataclass(slots=True)
class OtlpStatistics:
    """What was sent."""

    steps: int = 0
    spans: int = 0


def send(steps: Iterable[StepFacts], origins: Origins, exporter: SpanExporter, sampling: Sampling) -> OtlpStatistics:
    """Send the spans of steps, in batches.

    Raises:
        CollectorError: the collector did not take a batch; those before it are delivered.
    """
    sent = OtlpStatistics()

    def kept() -> Iterable[StepFacts]:
        for step in steps:
            if sampling.keeps(step):
                sent.steps += 1
                yield step

    spans = chain.from_iterable(step_spans(step, origins) for step in kept())
    try:
        while batch := list(islice(spans, BATCH)):
            if exporter.export(batch) is not SpanExportResult.SUCCESS:
                raise CollectorError(f"the collector did not take the spans; {sent.spans} were delivered before")
            sent.spans += len(batch)
    finally:
        exporter.shutdown()
    return sent
