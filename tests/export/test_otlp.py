"""A collector gets the spans of a recording after the fact."""

from __future__ import annotations

import json
from pathlib import Path

from swtrace.session import Session
from swtrace.spans.step_spans import span_count
from tests.support.commands import checked
from tests.support.span_receiver import SpanReceiver


def test_spans_reach_a_collector_after_the_fact(recording: Path, session: Session) -> None:
    """Every span of every step arrives, with the ledger's stall."""
    receiver = SpanReceiver()
    try:
        said = json.loads(checked("export", recording, "-f", "otlp", "--endpoint", receiver.endpoint, "--json").stdout)
        spans = receiver.wait_for(said["spans"])
    finally:
        receiver.close()
    steps = list(session.steps())
    assert len(spans) == said["spans"] == sum(span_count(step) for step in steps)
    assert len({span.span_id for span in spans}) == len(spans)
    stall = sum(int(str(span.attributes["swtrace.stall_ns"])) for span in spans if span.name == "swtrace.wait")
    assert stall == sum(int(step.stall_ns.sum()) for step in steps)
