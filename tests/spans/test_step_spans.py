"""Spans of one step: ids, parents, links, times, attributes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from swtrace.ledger.facts import CAUSES, StepFacts
from swtrace.spans.step_spans import STEP, TRANSFER, WAIT, StepSpans, span_count
from swtrace.spans.traces import span_ids, trace_id
from swtrace.trace.identity import RankKey
from swtrace.trace.request_link import RequestLink
from swtrace.trace.schema import Clock, Untimed
from tests.support.finished_steps import finished_steps, origins
from tests.support.host_clocks import HOUR_NS, UNIX_NS, HostClock, Hosts, true_steps
from tests.support.recorded_run import (
    LAYER_BYTES,
    REACH_NS,
    STALL_NS,
    STALLED_POSITION,
    TRANSFER_NS,
    PullRun,
    RecordedRun,
)
from tests.support.schedules import simulate

COMMON = {"swtrace.run_id", "swtrace.rank", "swtrace.series", "swtrace.step", "swtrace.clock"}


@pytest.fixture
def steps(tmp_path: Path) -> tuple[StepFacts, ...]:
    """Three finished steps of two ranks."""
    run = RecordedRun(tmp_path)
    run.write(3)
    run.close()
    steps = finished_steps(tmp_path)
    assert [step.step for step in steps] == [0, 1, 2]
    return steps


def attributes(span: ReadableSpan) -> dict[str, object]:
    """Return a span's attributes as a plain dict."""
    return dict(span.attributes or {})


def only(spans: Iterable[ReadableSpan], name: str, rank: int, layer: int | None = None) -> ReadableSpan:
    """Return the one span of this name, rank and layer."""
    (span,) = (
        span
        for span in spans
        if span.name == name
        and attributes(span)["swtrace.rank"] == rank
        and attributes(span).get("swtrace.layer") == layer
    )
    return span


def times(span: ReadableSpan) -> tuple[int, int]:
    """Return begin and end."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def identifier(span: ReadableSpan) -> int:
    """Return the span id."""
    assert span.context is not None
    return int(span.context.span_id)


def test_one_trace_per_step_across_ranks(steps: tuple[StepFacts, ...]) -> None:
    """All spans of a step are in one trace, those of another step in another, and no span id occurs twice."""
    traces = []
    for step in steps:
        spans = list(StepSpans(step, origins(0, 1)))
        assert {span.context.trace_id for span in spans if span.context} == {trace_id("run-1", step.step)}
        assert len({identifier(span) for span in spans}) == len(spans)
        traces.append(trace_id("run-1", step.step))
    assert len(set(traces)) == 3


def test_count_is_exact(steps: tuple[StepFacts, ...]) -> None:
    """A step has as many spans as were counted before they were made."""
    for step in steps:
        spans = list(StepSpans(step, origins(0, 1)))
        assert len(spans) == span_count(step)
    assert Counter(span.name for span in spans) == {STEP: 2, TRANSFER: 10, WAIT: 10}


def test_parents(steps: tuple[StepFacts, ...]) -> None:
    """Steps are roots; every broadcast and wait is a child of its own rank's step."""
    spans = list(StepSpans(steps[2], origins(0, 1)))
    for span in spans:
        if span.name == STEP:
            assert span.parent is None
        else:
            rank = attributes(span)["swtrace.rank"]
            assert isinstance(rank, int)
            assert span.parent is not None
            assert span.parent.span_id == identifier(only(spans, STEP, rank))


def test_links(steps: tuple[StepFacts, ...]) -> None:
    """A wait links to its broadcast, a receiver's broadcast to the source's, a source's to nothing."""
    spans = list(StepSpans(steps[2], origins(0, 1)))
    for layer in range(5):
        source = layer % 2
        sent = only(spans, TRANSFER, source, layer)
        received = only(spans, TRANSFER, 1 - source, layer)
        assert [link.context.span_id for link in received.links] == [identifier(sent)]
        assert sent.links == ()
        for rank in (0, 1):
            wait = only(spans, WAIT, rank, layer)
            assert [link.context.span_id for link in wait.links] == [identifier(only(spans, TRANSFER, rank, layer))]


def test_times_nest_but_for_broadcasts_that_cross_steps(steps: tuple[StepFacts, ...]) -> None:
    """All spans lie within their step, except the broadcasts marked as crossing steps."""
    crossing = []
    for step in steps:
        spans = list(StepSpans(step, origins(0, 1)))
        for span in spans:
            rank = attributes(span)["swtrace.rank"]
            assert isinstance(rank, int)
            begin, end = times(only(spans, STEP, rank))
            if attributes(span).get("swtrace.crosses_steps"):
                assert span.name == TRANSFER
                assert times(span)[0] < begin
                crossing.append((step.step, rank, attributes(span)["swtrace.layer"]))
            else:
                assert begin <= times(span)[0] <= times(span)[1] <= end
    assert sorted(crossing) == [(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0)]


def test_broadcast_states_the_transfer(steps: tuple[StepFacts, ...]) -> None:
    """A receiver's broadcast says what was moved, from where, into which window, and how long it took."""
    span = only(StepSpans(steps[1], origins(0, 1)), TRANSFER, 1, 4)
    known = attributes(span)
    begin, end = times(span)
    assert end - begin == TRANSFER_NS
    assert set(known) >= COMMON
    assert known["swtrace.layer"] == 4
    assert known["swtrace.source_rank"] == 0
    assert known["swtrace.window"] == 0
    assert known["swtrace.bytes"] == LAYER_BYTES
    assert known["swtrace.clock"] == "host"
    assert known["swtrace.role"] == "receiver"
    assert known["swtrace.observed"] == "callback"
    assert known["swtrace.transfer_ns"] == TRANSFER_NS
    assert known["swtrace.reach_layer"] == 3


def test_wait_states_stall_and_slack(steps: tuple[StepFacts, ...]) -> None:
    """A wait has its stall by cause, or its slack."""
    spans = list(StepSpans(steps[1], origins(0, 1)))
    stalled = attributes(only(spans, WAIT, 1, STALLED_POSITION))
    assert stalled["swtrace.stall_ns"] == STALL_NS
    assert stalled["swtrace.slack_ns"] == 0
    causes = {name: value for name, value in stalled.items() if name.startswith("swtrace.stall_")}
    del causes["swtrace.stall_ns"]
    assert sum(value for value in causes.values() if isinstance(value, int)) == STALL_NS
    on_time = attributes(only(spans, WAIT, 1, 4))
    assert on_time["swtrace.stall_ns"] == 0
    assert on_time["swtrace.slack_ns"] == 1_000_000 - TRANSFER_NS + REACH_NS


def test_source_has_no_window_and_no_stall(steps: tuple[StepFacts, ...]) -> None:
    """A rank that stores the layer reads its own copy, with no window and no stall."""
    wait = attributes(only(StepSpans(steps[1], origins(0, 1)), WAIT, 0, STALLED_POSITION))
    assert "swtrace.window" not in wait
    assert wait["swtrace.stall_ns"] == 0


def test_prefilled_window_has_a_wait_and_no_broadcast(steps: tuple[StepFacts, ...]) -> None:
    """The first step's first layer was filled at post-processing, so its wait is marked and links to nothing."""
    spans = list(StepSpans(steps[0], origins(0, 1)))
    wait = only(spans, WAIT, 1, 0)
    assert attributes(wait)["swtrace.prefilled"] is True
    assert wait.links == ()
    assert [span for span in spans if span.name == TRANSFER and attributes(span)["swtrace.layer"] == 0] == []


def test_step_states_its_work(steps: tuple[StepFacts, ...]) -> None:
    """A step has its phase, tokens, requests and sum of stall."""
    span = only(StepSpans(steps[1], origins(0, 1)), STEP, 1)
    known = attributes(span)
    assert set(known) >= COMMON
    assert (known["swtrace.phase"], known["swtrace.tokens"], known["swtrace.requests"]) == ("decode", 64, 4)
    assert known["swtrace.stall_ns"] == STALL_NS
    assert span.status.status_code is StatusCode.UNSET


def test_aborted_step_is_an_error(tmp_path: Path) -> None:
    """A forward that ended early is a span with status ERROR."""
    run = RecordedRun(tmp_path)
    run.write(1, aborted=True)
    (step,) = finished_steps(tmp_path)
    span = only(StepSpans(step, origins(0, 1)), STEP, 0)
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["swtrace.aborted"] is True
    run.close()


def test_step_without_its_end_spans_what_is_known(tmp_path: Path) -> None:
    """A rank that died in a step still has a step span, around what it recorded and marked incomplete."""
    run = RecordedRun(tmp_path)
    run.write(1)
    run.write_rank(0, 1)
    run.write_rank(1, 1, ended=False)
    step = finished_steps(tmp_path, flush=True)[-1]
    spans = list(StepSpans(step, origins(0, 1)))
    whole, broken = only(spans, STEP, 0), only(spans, STEP, 1)
    assert "swtrace.incomplete" not in attributes(whole)
    assert attributes(broken)["swtrace.incomplete"] is True
    begin, end = times(broken)
    assert begin < end
    for span in spans:
        if span.parent is not None and span.parent.span_id == identifier(broken):
            assert begin <= times(span)[0] <= times(span)[1] <= end
    run.close()


def test_rank_without_origin_is_left_out(steps: tuple[StepFacts, ...]) -> None:
    """Spans are made only of the ranks that this daemon reads; links to others are kept."""
    spans = list(StepSpans(steps[1], origins(1)))
    assert {attributes(span)["swtrace.rank"] for span in spans} == {1}
    received = only(spans, TRANSFER, 1, 2)
    sent = span_ids(steps[1].series, 1, 0, TRANSFER, (b"2",))
    assert received.links[0].context.span_id == int.from_bytes(sent)


def test_simulated_time_begins_with_the_run(tmp_path: Path) -> None:
    """Instants of an ideal channel are shown as time since the run's first ring was made."""
    run = RecordedRun(tmp_path, clock=Clock.VIRTUAL)
    run.write(1)
    (step,) = finished_steps(tmp_path)
    known = {
        key: dataclasses.replace(origin, monotonic_offset_ns=-1, virtual_offset_ns=5 * 10**17)
        for key, origin in origins(0, 1).items()
    }
    span = only(StepSpans(step, known), STEP, 0)
    assert times(span) == (5 * 10**17, 5 * 10**17 + run.step_ns)
    assert attributes(span)["swtrace.clock"] == "virtual"
    run.close()


def test_device_time_is_host_time_and_says_so(tmp_path: Path) -> None:
    """A device's instants are mapped to its host's clock, so its spans are placed like a host's, marked ``device``."""
    run = RecordedRun(tmp_path, clock=Clock.DEVICE)
    run.write(1)
    run.close()
    (step,) = finished_steps(tmp_path)
    spans = list(StepSpans(step, origins(0, 1)))
    assert {attributes(span)["swtrace.clock"] for span in spans} == {"device"}
    assert {attributes(span)["swtrace.observed"] for span in spans if span.name == TRANSFER} == {"event"}
    assert times(only(spans, STEP, 0)) == (run.base_ns + 10**18, run.base_ns + run.step_ns + 10**18)
    wait = only(spans, WAIT, 0, 1)
    assert times(wait)[0] == int(step.wait_begin_ns[0, 1]) + 10**18


def test_an_untimed_step_has_no_spans(tmp_path: Path) -> None:
    """Without instants there are no spans and no counts, both for untimed steps and for ranks with an untimed step."""
    run = RecordedRun(tmp_path, clock=Clock.DEVICE)
    run.write(1)
    run.write_untimed()
    run.write_rank(0, run.steps)
    run.write_rank_untimed(1, Untimed.BUSY)
    run.close()
    whole, mixed = finished_steps(tmp_path)
    assert (whole.step, mixed.step) == (0, 2)
    spans = list(StepSpans(mixed, origins(0, 1)))
    assert len(spans) == span_count(mixed) == 1 + 5 + 5
    assert {attributes(span)["swtrace.rank"] for span in spans} == {0}
    assert "swtrace.incomplete" not in attributes(only(spans, STEP, 0))


def test_absurd_instants_stay_within_what_a_span_can_carry(steps: tuple[StepFacts, ...]) -> None:
    """Instants of a hostile record are clamped, so that they cannot spoil the spans of other ranks."""
    step = steps[1]
    issued = step.issued_ns.copy()
    issued[0, 1] = -(1 << 63)
    ready = step.ready_ns.copy()
    ready[0, 2] = (1 << 63) - 1
    hostile = dataclasses.replace(step, issued_ns=issued, ready_ns=ready, source=np.full(5, 9, np.uint16))
    for span in StepSpans(hostile, origins(0, 1)):
        begin, end = times(span)
        assert 0 <= begin <= end < 1 << 63


def test_unknown_ranks_have_no_spans(steps: tuple[StepFacts, ...]) -> None:
    """A rank of another host adds to the trace only through its own daemon."""
    step = dataclasses.replace(
        steps[1],
        infos=(steps[1].infos[0], None),
        present=np.array([[True] * 5, [False] * 5]),
        ended=np.array([True, False]),
    )
    spans = list(StepSpans(step, origins(0, 1)))
    assert {attributes(span)["swtrace.rank"] for span in spans} == {0}
    assert len(spans) == span_count(step)
    assert step.ranks[1] == RankKey("run-1", 1)


def test_documentation_names_every_attribute(steps: tuple[StepFacts, ...], tmp_path: Path) -> None:
    """docs/spans.md names every attribute that spans carry."""
    run = RecordedRun(tmp_path / "aborted")
    run.write(1, aborted=True)
    run.write_rank(0, 1, ended=False)
    run.close()
    odd = finished_steps(tmp_path / "aborted", flush=True)
    seen = {name for step in (*steps, *odd) for span in StepSpans(step, origins(0, 1)) for name in attributes(span)}
    assert len(seen) > 25
    text = (Path(__file__).parents[2] / "docs" / "spans.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(swtrace\.\w+)`", text))
    documented |= {f"swtrace.stall_{cause}_ns" for cause in CAUSES if f"_{cause}_ns`" in text}
    assert seen - documented == set()


def test_a_step_links_to_the_traced_requests_in_its_batch(tmp_path: Path) -> None:
    """Only the spans of steps link to requests, as spans of other processes and in the order of recording."""
    run = RecordedRun(tmp_path, links=(RequestLink(1 << 127 | 7, 8), RequestLink(9, 10)))
    run.write(1)
    run.close()
    (step,) = finished_steps(tmp_path)
    for span in StepSpans(step, origins(0, 1)):
        contexts = [link.context for link in span.links]
        requests = [(each.trace_id, each.span_id) for each in contexts if each.trace_id != trace_id("run-1", 0)]
        assert requests == (list(run.links) if span.name == STEP else [])
        assert all(each.is_remote for each in contexts if span.name == STEP)


def test_a_step_over_two_hosts_is_one_trace_in_order() -> None:
    """With wall clocks 5 ms apart, no broadcast is received before it was sent, and spans nest in their step."""
    ms = 1_000_000
    made = simulate(ranks=4, layers=8, k=1, steps=6, compute=lambda _r, _s, _p: ms, latency=100_000, occupancy=200_000)
    hosts = Hosts(made, (0, 1, 0, 1), (HostClock(), HostClock(HOUR_NS, wall_ahead_ns=5 * ms)))
    for step, truth in zip(hosts.fed().take_steps(), true_steps(made), strict=True):
        spans, bounds = StepSpans(step, hosts.origins(ms)), step.clock_bound_ns.tolist()
        assert 0 < max(bounds) < ms
        for span in spans:
            said, (begin, end) = attributes(span), times(span)
            rank = int(str(said["swtrace.rank"]))
            assert said.get("swtrace.clock_bound_ns", 0) == bounds[rank]
            own_begin, own_end = times(only(spans, STEP, rank))
            assert own_begin <= begin <= end <= own_end or said.get("swtrace.crosses_steps")
            assert abs(own_begin - UNIX_NS - truth.begin_ns[rank]) <= bounds[rank]
            if span.name == TRANSFER:
                layer, source = int(str(said["swtrace.layer"])), int(str(said["swtrace.source_rank"]))
                sent, completed = times(only(spans, TRANSFER, source, layer))
                assert sent - max(bounds) <= end <= completed + max(bounds)


def test_one_clock_has_no_bound(steps: tuple[StepFacts, ...]) -> None:
    """Spans of ranks that share a clock say nothing about its bound."""
    assert not any("swtrace.clock_bound_ns" in attributes(span) for span in StepSpans(steps[1], origins(0, 1)))


@pytest.fixture
def pulled(tmp_path: Path) -> tuple[StepFacts, ...]:
    """Three steps of rank 0 and two of rank 1, which pull."""
    run = PullRun(tmp_path)
    run.write_each(3, 2)
    run.close()
    return finished_steps(tmp_path)


def test_a_pull_series_has_a_trace_per_step_and_rank(pulled: tuple[StepFacts, ...]) -> None:
    """Steps of two ranks with the same number are two traces, and no span id occurs twice."""
    traces = {}
    for step in pulled:
        spans = list(StepSpans(step, origins(0, 1)))
        assert len(spans) == span_count(step)
        (identified,) = {span.context.trace_id for span in spans if span.context}
        (rank,) = {attributes(span)["swtrace.rank"] for span in spans}
        assert identified == trace_id("run-1", step.step, 1 if rank else 0)
        traces[rank, step.step] = identified, *map(identifier, spans)
    assert traces.keys() == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}
    assert len({each for ids in traces.values() for each in ids}) == sum(map(len, traces.values()))


def test_a_pull_series_has_copies_and_no_broadcasts(pulled: tuple[StepFacts, ...]) -> None:
    """Received layers have copies, without role and link to another rank; own layers have only a wait."""
    step = next(step for step in pulled if step.only_rank == RankKey("run-1", 1) and step.step == 1)
    spans = list(StepSpans(step, origins(0, 1)))
    assert Counter(span.name for span in spans) == {STEP: 1, TRANSFER: 3, WAIT: 5}
    for span in spans:
        if span.name == TRANSFER:
            assert attributes(span)["swtrace.kind"] == "pull"
            assert attributes(span)["swtrace.source_rank"] == 0
            assert "swtrace.role" not in attributes(span)
            assert not span.links
            wait = only(spans, WAIT, 1, attributes(span)["swtrace.layer"])  # type: ignore[arg-type]
            assert [link.context.span_id for link in wait.links] == [identifier(span)]
    assert attributes(only(spans, STEP, 1))["swtrace.transport"] == "pull"
    assert "swtrace.entry_skew_ns" not in attributes(only(spans, STEP, 1))
    own = only(spans, WAIT, 1, 1)
    assert not own.links
    assert "swtrace.prefilled" not in attributes(own)
