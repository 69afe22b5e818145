"""One finished step as OpenTelemetry spans. Pure: same facts, same spans, same ids, on every host.

A trace is one step of a run: its id is a hash of (run id, step). Each rank and series contributes a root
``swtrace.step``; below it stand one ``swtrace.broadcast`` per layer (issued to ready) and one
``swtrace.wait`` (wait begin to wait end). Span ids are a hash of (run id, step, rank, kind, series, layer), so
that a daemon can link to a span that another host's daemon exports, without asking.

A wait links to its broadcast, a receiver's broadcast to the source's. Everything nests within its step
except broadcasts marked ``swtrace.crosses_steps``: issued before the step began, or still under way when it ended.
``docs/spans.md`` lists every attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from swtrace import __version__
from swtrace.ledger.facts import CAUSES, Mask, StepFacts
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase, StepFlag, TransferFlag

STEP = "swtrace.step"
BROADCAST = "swtrace.broadcast"
WAIT = "swtrace.wait"

_SCOPE = InstrumentationScope("swtrace", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_LAST_INSTANT = (1 << 63) - 1
_CLOCKS = {clock.value: clock.name.lower() for clock in Clock}
_CLOCK_NUMBERS = {name: number for number, name in _CLOCKS.items()}
_OBSERVED = {observed.value: observed.name.lower() for observed in Observed}
_PHASES = {phase.value: phase.name.lower() for phase in Phase}

Attributes = dict[str, str | int | bool]


def trace_id(run_id: str, step: int) -> int:
    """Return the id of the trace that holds all spans of one step of a run: 16 bytes, never 0."""
    return int.from_bytes(_digest(f"trace\0{run_id}\0{step}", 16), "big") or 1


def span_id(run_id: str, step: int, rank: int, kind: str, *, series: str, layer: int | None = None) -> int:
    """Return a span's id: 8 bytes, never 0. ``layer`` is None for a step."""
    text = f"span\0{run_id}\0{step}\0{rank}\0{kind}\0{series}\0{'' if layer is None else layer}"
    return int.from_bytes(_digest(text, 8), "big") or 1


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode(), digest_size=size).digest()


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """What a rank's spans need beside the facts: who it is, and what time its clocks tell."""

    resource: Resource
    monotonic_offset_ns: int
    """UNIX time minus CLOCK_MONOTONIC of the rank's host."""
    virtual_offset_ns: int
    """UNIX time at which a series on a simulated clock is said to have begun."""

    def unix_ns(self, instant_ns: int, clock: int) -> int:
        """Return an instant of a record as UNIX time, within what a span can carry."""
        offset = self.virtual_offset_ns if clock == Clock.VIRTUAL else self.monotonic_offset_ns
        return min(max(instant_ns + offset, 0), _LAST_INSTANT)


def step_clock(info: SeriesInfo | None) -> int:
    """Return the clock of a series' STEP records: their facts do not carry it."""
    return _CLOCK_NUMBERS.get("" if info is None else info.clock, Clock.HOST.value)


def broadcasts(step: StepFacts) -> Mask:
    """Return ``[rank, position]`` of the spans ``swtrace.broadcast``: every record but those of prefilled windows."""
    return np.asarray(step.present & ((step.flags & TransferFlag.PREFILLED) == 0), np.bool_)


def waits(step: StepFacts) -> Mask:
    """Return ``[rank, position]`` of the spans ``swtrace.wait``: every record that something waited for."""
    return np.asarray(step.present & ((step.flags & TransferFlag.UNWAITED) == 0), np.bool_)


def step_ranks(step: StepFacts) -> Mask:
    """Return ``[rank]`` of the spans ``swtrace.step``: every rank of which anything is known."""
    known = np.array([info is not None for info in step.infos], np.bool_)
    return np.asarray(known & (step.ended | step.present.any(axis=1)), np.bool_)


def span_count(step: StepFacts) -> int:
    """Return how many spans :func:`step_spans` makes of a step whose ranks all have an origin."""
    ranks = step_ranks(step)
    return int(ranks.sum() + broadcasts(step)[ranks].sum() + waits(step)[ranks].sum())


def step_spans(step: StepFacts, origins: Mapping[RankKey, SpanOrigin]) -> Iterator[ReadableSpan]:
    """Yield the spans of a step: each rank's ``swtrace.step``, then its broadcasts and waits by layer.

    A rank without an origin is left out.
    """
    for rank in np.flatnonzero(step_ranks(step)).tolist():
        info = step.infos[rank]
        origin = origins.get(step.ranks[rank])
        if info is not None and origin is not None:
            yield from _RankSpans(step, rank, info, origin).spans()


class _RankSpans:
    """The spans of one rank in one step of one series."""

    def __init__(self, step: StepFacts, rank: int, info: SeriesInfo, origin: SpanOrigin) -> None:
        self._step = step
        self._rank = rank
        self._info = info
        self._origin = origin
        self._run_id = step.series.run_id
        self._trace_id = trace_id(self._run_id, step.step)
        self._step_clock = step_clock(info)
        self._begin_ns, self._end_ns = self._bounds()
        self._parent = self._context(step.ranks[rank].rank, STEP)
        self._common: Attributes = {
            "swtrace.run_id": self._run_id,
            "swtrace.rank": step.ranks[rank].rank,
            "swtrace.series": info.name,
            "swtrace.step": step.step,
        }

    def spans(self) -> Iterator[ReadableSpan]:
        yield self._step_span()
        step, rank = self._step, self._rank
        has_broadcast, has_wait = broadcasts(step)[rank].tolist(), waits(step)[rank].tolist()
        for position in np.flatnonzero(step.present[rank]).tolist():
            shared = self._layer_attributes(position)
            if has_broadcast[position]:
                yield self._broadcast_span(position, shared)
            if has_wait[position]:
                yield self._wait_span(position, shared, linked=has_broadcast[position])

    def _step_span(self) -> ReadableSpan:
        step, rank = self._step, self._rank
        attributes: Attributes = {
            **self._common,
            "swtrace.clock": _CLOCKS[self._step_clock],
            "swtrace.stall_ns": int(step.stall_ns[rank].sum()),
            "swtrace.slack_ns": int(step.slack_ns[rank].sum()),
            "swtrace.transfer_ns": int(step.transfer_ns[rank].sum()),
        }
        status = Status(StatusCode.UNSET)
        if step.ended[rank]:
            attributes |= {
                "swtrace.phase": _PHASES.get(int(step.phase[rank]), "other"),
                "swtrace.tokens": int(step.tokens[rank]),
                "swtrace.requests": int(step.requests[rank]),
                "swtrace.waits": int(step.waits[rank]),
                "swtrace.run_delay_us": int(step.run_delay_us[rank]),
                "swtrace.steal_us": int(step.steal_us[rank]),
            }
            if step.entry_known:
                attributes["swtrace.entry_skew_ns"] = int(step.entry_skew_ns[rank])
            if int(step.step_flags[rank]) & StepFlag.ABORTED:
                attributes["swtrace.aborted"] = True
                status = Status(StatusCode.ERROR, "the forward ended before its last layer")
        if not step.ended[rank] or not step.present[rank].all():
            attributes["swtrace.incomplete"] = True
        bounds = (self._begin_ns, self._end_ns)
        return self._span(STEP, self._parent, bounds, self._step_clock, attributes=attributes, status=status)

    def _broadcast_span(self, position: int, shared: Attributes) -> ReadableSpan:
        step, rank, info = self._step, self._rank, self._info
        flags = int(step.flags[rank, position])
        issued, ready = int(step.issued_ns[rank, position]), int(step.ready_ns[rank, position])
        source = self._source(position)
        attributes: Attributes = {
            **shared,
            "swtrace.bytes": info.layer_bytes,
            "swtrace.role": "source" if source == step.ranks[rank].rank else "receiver",
            "swtrace.observed": _OBSERVED.get(int(step.observed[rank, position]), "never"),
            "swtrace.reach_layer": info.start_layer + int(step.reach_position[rank, position]),
        }
        if ready <= 0 and not flags & TransferFlag.OPEN:  # A send is over when the last receiver has it.
            ready = int(np.where(step.attributed, step.ready_ns, 0)[:, position].max())
        if ready <= 0:  # Nobody saw it complete: all that is known is that the step ended first.
            attributes["swtrace.open"] = True
            ready = max(issued, self._end_ns)
        if step.attributed[rank, position]:
            attributes["swtrace.transfer_ns"] = int(step.transfer_ns[rank, position])
            attributes["swtrace.backlog_ns"] = int(step.backlog_ns[rank, position])
        if flags & TransferFlag.CROSSES_STEPS or issued < self._begin_ns or ready > self._end_ns:
            attributes["swtrace.crosses_steps"] = True
        if flags & TransferFlag.UNWAITED:
            attributes["swtrace.unwaited"] = True
        layer = info.start_layer + position
        context = self._context(step.ranks[rank].rank, BROADCAST, layer)
        links = [Link(self._context(source, BROADCAST, layer))] if source != step.ranks[rank].rank else []
        clock = int(step.clock[rank, position])
        return self._span(
            BROADCAST, context, (issued, ready), clock, attributes=attributes, parent=self._parent, links=links
        )

    def _wait_span(self, position: int, shared: Attributes, *, linked: bool) -> ReadableSpan:
        step, rank, info = self._step, self._rank, self._info
        attributes: Attributes = {
            **shared,
            "swtrace.stall_ns": int(step.stall_ns[rank, position]),
            "swtrace.slack_ns": int(step.slack_ns[rank, position]),
        }
        for cause, cause_ns in zip(CAUSES, step.cause_ns[:, rank, position].tolist(), strict=True):
            if cause_ns:
                attributes[f"swtrace.stall_{cause}_ns"] = cause_ns
        late = int(step.late_rank[rank, position])
        if 0 <= late < len(step.ranks) and late != rank:
            attributes["swtrace.late_rank"] = step.ranks[late].rank
        if not linked:
            attributes["swtrace.prefilled"] = True
        layer = info.start_layer + position
        own_rank = step.ranks[rank].rank
        links = [Link(self._context(own_rank, BROADCAST, layer))] if linked else []
        begin, end = int(step.wait_begin_ns[rank, position]), int(step.wait_end_ns[rank, position])
        context = self._context(own_rank, WAIT, layer)
        clock = int(step.clock[rank, position])
        return self._span(WAIT, context, (begin, end), clock, attributes=attributes, parent=self._parent, links=links)

    def _layer_attributes(self, position: int) -> Attributes:
        """Return what a layer's broadcast and wait have in common."""
        attributes: Attributes = {
            **self._common,
            "swtrace.layer": self._info.start_layer + position,
            "swtrace.source_rank": self._source(position),
            "swtrace.clock": _CLOCKS.get(int(self._step.clock[self._rank, position]), "unknown"),
        }
        window = int(self._step.window[self._rank, position])
        if window != NO_WINDOW:
            attributes["swtrace.window"] = window
        return attributes

    def _source(self, position: int) -> int:
        """Return the global rank that keeps the layer; -1 where the record names none of the group."""
        source = int(self._step.source[position])
        return self._step.ranks[source].rank if source < len(self._step.ranks) else -1

    def _bounds(self) -> tuple[int, int]:
        """Return begin and end of the step: of what is at hand, where its step record is not."""
        step, rank = self._step, self._rank
        if step.ended[rank]:
            return int(step.begin_ns[rank]), int(step.end_ns[rank])
        instants = np.concatenate(
            [
                column[rank][step.present[rank]]
                for column in (step.issued_ns, step.ready_ns, step.wait_begin_ns, step.wait_end_ns)
            ]
        )
        instants = instants[instants > 0]
        return (int(instants.min()), int(instants.max())) if instants.size else (0, 0)

    def _context(self, rank: int, kind: str, layer: int | None = None) -> SpanContext:
        identifier = span_id(self._run_id, self._step.step, rank, kind, series=self._info.name, layer=layer)
        return SpanContext(
            self._trace_id, identifier, is_remote=rank != self._step.ranks[self._rank].rank, trace_flags=_SAMPLED
        )

    def _span(
        self,
        name: str,
        context: SpanContext,
        interval_ns: tuple[int, int],
        clock: int,
        *,
        attributes: Attributes,
        parent: SpanContext | None = None,
        links: list[Link] | None = None,
        status: Status | None = None,
    ) -> ReadableSpan:
        start_time, end_time = (self._origin.unix_ns(instant, clock) for instant in interval_ns)
        return ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._origin.resource,
            attributes=attributes,
            links=links or (),
            kind=SpanKind.INTERNAL,
            status=status or Status(StatusCode.UNSET),
            start_time=start_time,
            end_time=max(start_time, end_time),
            instrumentation_scope=_SCOPE,
        )
