"""Send the spans of a recorded run to any OpenTelemetry collector, with the same ids that a daemon uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from swtrace.errors import SwtraceError
from swtrace.ledger.facts import StepFacts
from swtrace.spans.encoding import batches
from swtrace.spans.environment import DEFAULT_MAX_BATCH as BATCH
from swtrace.spans.origins import Origins
from swtrace.spans.step_spans import StepSpans
from swtrace.spans.traces import Sampling


class CollectorError(SwtraceError):
    """A collector did not accept the spans."""


@dataclass(slots=True)
class OtlpStatistics:
    """Counts of what was sent."""

    steps: int = 0
    spans: int = 0


def send(steps: Iterable[StepFacts], origins: Origins, exporter: SpanExporter, sampling: Sampling) -> OtlpStatistics:
    """Send the spans of steps in batches, and shut the exporter down.

    Raises:
        CollectorError: the collector did not accept a batch. Earlier batches have been delivered.
    """
    sent = OtlpStatistics()
    held: list[StepSpans] = []

    def export() -> None:
        for batch in batches(held, BATCH):
            if exporter.export(batch) is not SpanExportResult.SUCCESS:
                raise CollectorError(f"the collector did not accept the spans; {sent.spans} were delivered before")
            sent.spans += len(batch)
        held.clear()

    try:
        for step in filter(sampling.keeps, steps):
            sent.steps += 1
            spans = StepSpans(step, origins)
            if sum(map(len, held)) + len(spans) > BATCH:
                export()
            held.append(spans)
        export()
    finally:
        exporter.shutdown()
    return sent
