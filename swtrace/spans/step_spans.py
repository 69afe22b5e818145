"""One finished step as OpenTelemetry spans. The same facts give the same spans and ids on every host.

A trace is one step of a run, or of one rank of a pull series. Each rank and series contributes a root span
``swtrace.step``. Below it are, for each layer, one ``swtrace.transfer`` (issued to ready) and one ``swtrace.wait``
(wait begin to wait end). ``swtrace.kind`` says what a transfer is: a broadcast or a copy.
:mod:`~swtrace.spans.traces` makes the ids.

A wait links to its transfer, a receiver's broadcast to the source's, and a step to the traced requests in its batch.
All spans lie within their step, except transfers marked ``swtrace.crosses_steps``, which were issued before it began
or were not ready when it ended.
``docs/spans.md`` lists every attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from swtrace.ledger.facts import CAUSES, Mask, Nanoseconds, StepFacts
from swtrace.ledger.requests import Links
from swtrace.spans.origins import Origins, ShownTime, SpanOrigin, step_origins
from swtrace.spans.traces import span_ids, trace_of
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase, StepFlag, TransferFlag
from swtrace.version import __version__

STEP = "swtrace.step"
TRANSFER = "swtrace.transfer"
WAIT = "swtrace.wait"

SCOPE = InstrumentationScope("swtrace", __version__)
ABORTED = "the forward ended before its last layer"
"""Description of the span status ERROR."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_CLOCKS = (*(clock.name.lower() for clock in Clock), "unknown")
_CLOCK_NUMBERS = {clock.name.lower(): clock.value for clock in Clock}
_OBSERVED = tuple(observed.name.lower() for observed in Observed)
_PHASES = tuple(phase.name.lower() for phase in Phase)


def step_clock(info: SeriesInfo | None) -> int:
    """Return the clock of a series' STEP records, which the facts of a step do not include."""
    return Clock.HOST.value if info is None else _CLOCK_NUMBERS.get(info.clock, Clock.HOST.value)


def transfers(step: StepFacts) -> Mask:
    """Return ``[rank, position]`` of the ``swtrace.transfer`` spans: all records but those of prefilled windows.

    The source of a broadcast has one, too. The owner of a layer that others copy does nothing, and has none. Nor does
    an observed series, in which nothing moves.
    """
    if not step.shared:
        return np.zeros_like(step.present)
    none = TransferFlag.PREFILLED if step.of_rank is None else TransferFlag.PREFILLED | TransferFlag.OWN
    return np.asarray(step.present & ((step.flags & none) == 0), np.bool_)


def waits(step: StepFacts) -> Mask:
    """Return ``[rank, position]`` of the ``swtrace.wait`` spans: all records that something waited for.

    In an observed series, nothing waits.
    """
    if not step.shared:
        return np.zeros_like(step.present)
    return np.asarray(step.present & ((step.flags & TransferFlag.UNWAITED) == 0), np.bool_)


def step_ranks(step: StepFacts) -> Mask:
    """Return ``[rank]`` of the ``swtrace.step`` spans: all known ranks with any record of the step."""
    known = np.array([info is not None for info in step.infos], np.bool_)
    return np.asarray(known & (step.ended | step.present.any(axis=1)), np.bool_)


def span_count(step: StepFacts) -> int:
    """Return the number of spans in the :class:`StepSpans` of a step whose ranks all have an origin."""
    ranks = step_ranks(step)
    return int(ranks.sum() + transfers(step)[ranks].sum() + waits(step)[ranks].sum())


Value = str | int | bool
Ids = npt.NDArray[np.uint8]
"""``[span, byte]``: ids of spans."""
_Whole = npt.NDArray[np.integer]
_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the spans of a table."""

    name: str
    values: _Whole
    """``[span]``: the value, or the index of the value in :attr:`choices`."""
    choices: tuple[Value, ...] = ()
    present: Mask | None = None
    """``[span]``: the spans that have the attribute; None for all."""


@dataclass(frozen=True, slots=True)
class SpanTable:
    """All spans of one name. Both span objects and encoded bytes are made from this description."""

    name: str
    trace_id: bytes
    rank: _Integers
    """``[span]``: group rank."""
    place: _Integers
    """``[span]``: order among the spans of its rank."""
    ids: Ids
    begin_ns: Nanoseconds
    """``[span]``: UNIX time."""
    end_ns: Nanoseconds
    attributes: tuple[Attribute, ...]
    parents: Ids | None = None
    links: Ids | None = None
    linked: Mask | None = None
    """``[span]``: the spans that have a link, one each."""
    links_to_other_rank: bool = False
    requests: tuple[Links, ...] = ()
    """``[span]``: trace contexts of requests, to which the span links; empty if no span does."""
    aborted: Mask | None = None
    """``[span]``: the spans with status ERROR."""

    def spans(self, resources: Sequence[Resource | None]) -> list[ReadableSpan]:
        """Return the spans as OpenTelemetry objects. ``resources`` has one entry per rank of the group."""
        attributes: list[dict[str, Value]] = [{} for _ in self.rank]
        for attribute in self.attributes:
            values: list[Value] = attribute.values.tolist()
            if attribute.choices:
                values = [attribute.choices[int(value)] for value in values]
            has = (True,) * len(values) if attribute.present is None else attribute.present
            for of_span, value, present in zip(attributes, values, has, strict=True):
                if present:
                    of_span[attribute.name] = value
        aborted = () if self.aborted is None else np.flatnonzero(self.aborted)
        return [
            ReadableSpan(
                name=self.name,
                context=self._context(self.ids[index]),
                parent=None if self.parents is None else self._context(self.parents[index]),
                resource=resources[rank],
                attributes=attributes[index],
                links=self._links(index),
                kind=SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, ABORTED) if index in aborted else Status(StatusCode.UNSET),
                start_time=int(self.begin_ns[index]),
                end_time=int(self.end_ns[index]),
                instrumentation_scope=SCOPE,
            )
            for index, rank in enumerate(self.rank.tolist())
        ]

    def _links(self, index: int) -> tuple[Link, ...]:
        if self.requests:
            return tuple(
                Link(SpanContext(*each, is_remote=True, trace_flags=_SAMPLED)) for each in self.requests[index]
            )
        if self.links is None or self.linked is None or not self.linked[index]:
            return ()
        return (Link(self._context(self.links[index], is_remote=self.links_to_other_rank)),)

    def _context(self, span_id: Ids, *, is_remote: bool = False) -> SpanContext:
        trace, span = (int.from_bytes(identifier, "big") for identifier in (self.trace_id, span_id.tobytes()))
        return SpanContext(trace, span, is_remote=is_remote, trace_flags=_SAMPLED)


class StepSpans(Sequence[ReadableSpan]):
    """The spans of a step, in order: each rank's ``swtrace.step``, then its transfers and waits by layer.

    Ranks without an origin have no spans.
    """

    def __init__(self, step: StepFacts, origins: Origins) -> None:
        known = step_origins(step, origins)
        self._resources = [None if origin is None else origin.resource for origin in known]
        self.tables = _Description(step, known).tables()
        key = [table.rank * (2 * step.present.shape[1] + 1) + table.place for table in self.tables]
        self.order: list[int] = np.argsort(np.concatenate(key)).tolist()
        """Index of each span in the concatenated tables."""
        counts = np.bincount(np.concatenate([table.rank for table in self.tables]), minlength=len(known))
        ends = np.cumsum(counts).tolist()
        self.runs = [
            (origin.resource, end - count, end)
            for origin, count, end in zip(known, counts.tolist(), ends, strict=True)
            if origin is not None and count
        ]
        """For each rank, its resource and the range of its spans: ``(resource, first, end)``, end excluded."""

    @cached_property
    def _readable(self) -> list[ReadableSpan]:
        spans = [span for table in self.tables for span in table.spans(self._resources)]
        return [spans[index] for index in self.order]

    def __len__(self) -> int:
        """Return the number of spans, without making any."""
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> ReadableSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadableSpan]: ...
    def __getitem__(self, index: int | slice) -> ReadableSpan | list[ReadableSpan]:
        """Return a span or a slice of spans."""
        return self._readable[index]

    def __iter__(self) -> Iterator[ReadableSpan]:
        """Iterate over the spans."""
        return iter(self._readable)


class _Description:
    """Makes the tables of one step."""

    def __init__(self, step: StepFacts, known: Sequence[SpanOrigin | None]) -> None:
        self._step = step
        self._shown = ShownTime(known)
        self._ranks = np.array([rank.rank for rank in step.ranks], np.int64)
        self._at = np.flatnonzero(step_ranks(step) & np.array([origin is not None for origin in known]))
        self._trace_id = trace_of(step).to_bytes(16, "big")
        self._begin_ns, self._end_ns = self._bounds()
        self._positions = step.present.shape[1]
        self._numbers = np.append(np.array(step.layers, np.int64), -1)  # -1 if the record's reach position is not one
        self._layers = [b"%d" % layer for layer in step.layers]
        named = np.append(self._ranks, -1)  # -1 if the record's source is not a rank of the group
        self._sources = named[np.minimum(step.source, len(step.ranks))]
        self._from_ranks = step.from_ranks
        self._step_ids = np.zeros((len(step.ranks), 8), np.uint8)
        for rank in self._at.tolist():
            self._step_ids[rank] = self._ids(int(self._ranks[rank]), STEP, (b"",))
        self._ids_of_transfers = np.zeros((len(step.ranks), self._positions, 8), np.uint8)

    def tables(self) -> tuple[SpanTable, ...]:
        """Return the tables of steps, transfers and waits, in this order because waits need the ids of transfers."""
        return self._steps(), self._transfers(), self._waits()

    def _steps(self) -> SpanTable:
        step, at = self._step, self._at
        ended = step.ended[at]
        clock = np.array([step_clock(step.infos[rank]) for rank in at.tolist()], np.int64)
        phase = step.phase[at]
        aborted = ended & ((step.step_flags[at] & StepFlag.ABORTED) != 0)
        begin_ns, end_ns = self._unix(at, clock, self._begin_ns[at], self._end_ns[at])
        return SpanTable(
            name=STEP,
            trace_id=self._trace_id,
            rank=at,
            place=np.zeros_like(at),
            ids=self._step_ids[at],
            begin_ns=begin_ns,
            end_ns=end_ns,
            attributes=(
                *self._common(at),
                self._of_info("transport", at),
                Attribute("swtrace.clock", clock, _CLOCKS),
                *(
                    Attribute(f"swtrace.{name}", getattr(step, name)[at].sum(axis=1))
                    for name in ("stall_ns", "slack_ns", "transfer_ns") * step.shared
                ),
                Attribute("swtrace.phase", np.where(phase < len(_PHASES), phase, 0), _PHASES, ended),
                *(
                    Attribute(f"swtrace.{name}", attrgetter(name)(step)[at], present=ended)
                    for name in ("tokens", "requests", "waits", "run_delay_us", "steal_us")
                ),
                Attribute("swtrace.entry_skew_ns", step.entry_skew_ns[at], present=ended & step.entry_known),
                _flag("swtrace.aborted", aborted),
                _flag("swtrace.incomplete", ~(ended & step.present[at].all(axis=1))),
            ),
            requests=tuple(step.links[rank] for rank in at.tolist()) if any(step.links) else (),
            aborted=aborted,
        )

    def _transfers(self) -> SpanTable:
        step = self._step
        copies = step.of_rank is not None
        at, rank, position = self._rows(transfers(step))
        issued, ready, flags = step.issued_ns.take(at), step.ready_ns.take(at), step.flags.take(at)
        begin, end = self._begin_ns[rank], self._end_ns[rank]
        # The completion of a send is not observed, so it ends when the last receiver has the weight.
        is_sent = (ready <= 0) & ((flags & TransferFlag.OPEN) == 0)
        received = np.where(step.attributed, step.ready_ns, 0).max(axis=0)
        ready = np.where(is_sent, received[position], ready)
        is_open = ready <= 0  # Not seen to complete, so end the span at the end of the step or at the issue.
        ready = np.where(is_open, np.maximum(issued, end), ready)
        receives = self._sources[position] != self._ranks[rank]
        attributed = step.attributed.take(at)
        crosses = ((flags & TransferFlag.CROSSES_STEPS) != 0) | (issued < begin) | (ready > end)
        layer_bytes = np.array([0 if info is None else info.layer_bytes for info in step.infos], np.int64)
        begin_ns, end_ns = self._unix(rank, step.clock.take(at), issued, ready)
        return SpanTable(
            name=TRANSFER,
            trace_id=self._trace_id,
            rank=rank,
            place=2 * position + 1,
            ids=self._transfer_ids(rank, position),
            begin_ns=begin_ns,
            end_ns=end_ns,
            attributes=(
                *self._of_layer(at, rank, position),
                self._of_info("kind", rank),
                Attribute("swtrace.bytes", layer_bytes[rank]),
                *((Attribute("swtrace.role", receives.astype(np.int64), ("source", "receiver")),) * (not copies)),
                Attribute("swtrace.observed", np.minimum(step.observed.take(at), len(_OBSERVED) - 1), _OBSERVED),
                Attribute(
                    "swtrace.reach_layer", self._numbers[np.minimum(step.reach_position.take(at), self._positions)]
                ),
                _flag("swtrace.open", is_open),
                Attribute("swtrace.transfer_ns", step.transfer_ns.take(at), present=attributed),
                Attribute("swtrace.backlog_ns", step.backlog_ns.take(at), present=attributed),
                _flag("swtrace.crosses_steps", crosses),
                _flag("swtrace.unwaited", (flags & TransferFlag.UNWAITED) != 0),
            ),
            parents=self._step_ids[rank],
            links=None if copies else self._source_ids()[position],
            linked=None if copies else receives,
            links_to_other_rank=not copies,
        )

    def _waits(self) -> SpanTable:
        step = self._step
        at, rank, position = self._rows(waits(step))
        late = step.late_rank.take(at)
        is_late = (late >= 0) & (late < len(step.ranks)) & (late != rank)
        linked = transfers(step).take(at)
        prefilled = (step.flags.take(at) & TransferFlag.PREFILLED) != 0
        begin_ns, end_ns = self._unix(rank, step.clock.take(at), step.wait_begin_ns.take(at), step.wait_end_ns.take(at))
        return SpanTable(
            name=WAIT,
            trace_id=self._trace_id,
            rank=rank,
            place=2 * position + 2,
            ids=self._layer_ids(WAIT, rank, position),
            begin_ns=begin_ns,
            end_ns=end_ns,
            attributes=(
                *self._of_layer(at, rank, position),
                Attribute("swtrace.stall_ns", step.stall_ns.take(at)),
                Attribute("swtrace.slack_ns", step.slack_ns.take(at)),
                *(
                    Attribute(f"swtrace.stall_{cause}_ns", cause_ns, present=cause_ns != 0)
                    for cause, cause_ns in zip(
                        CAUSES, step.cause_ns.reshape(len(CAUSES), -1).take(at, axis=1), strict=True
                    )
                ),
                Attribute("swtrace.late_rank", self._ranks[np.where(is_late, late, 0)], present=is_late),
                _flag("swtrace.prefilled", prefilled),
            ),
            parents=self._step_ids[rank],
            links=self._ids_of_transfers[rank, position],
            linked=linked,
        )

    def _rows(self, mask: Mask) -> tuple[_Integers, _Integers, _Integers]:
        """Return the flat index, rank and position of each span's record, for the ranks that have spans."""
        row, position = np.nonzero(mask[self._at])
        rank = self._at[row]
        return rank * self._positions + position, rank, position

    def _common(self, rank: _Integers) -> tuple[Attribute, ...]:
        step, same = self._step, np.zeros_like(rank)
        bound_ns = step.clock_bound_ns[rank] * step.comparable
        bound = (Attribute("swtrace.clock_bound_ns", bound_ns, present=bound_ns > 0),) if bound_ns.any() else ()
        return (
            Attribute("swtrace.run_id", same, (step.series.run_id,)),
            Attribute("swtrace.rank", self._ranks[rank]),
            Attribute("swtrace.series", same, (step.series.name,)),
            Attribute("swtrace.step", same, (step.step,)),
            *bound,
        )

    def _of_info(self, name: Literal["kind", "transport"], rank: _Integers) -> Attribute:
        """Return an attribute whose value is a text of the rank's series."""
        of_ranks = ["" if info is None else str(getattr(info, name)) for info in self._step.infos]
        values = tuple(dict.fromkeys(of_ranks))
        return Attribute(f"swtrace.{name}", np.array([values.index(each) for each in of_ranks])[rank], values)

    def _of_layer(self, at: _Integers, rank: _Integers, position: _Integers) -> tuple[Attribute, ...]:
        """Return the attributes that a layer's transfer and wait have in common."""
        step, window = self._step, self._step.window.take(at)
        return (
            *self._common(rank),
            Attribute("swtrace.layer", self._numbers[position]),
            Attribute(
                "swtrace.source_rank",
                self._sources[position],
                present=None if self._from_ranks.all() else self._from_ranks[rank],
            ),
            Attribute("swtrace.clock", np.minimum(step.clock.take(at), len(_CLOCKS) - 1), _CLOCKS),
            Attribute("swtrace.window", window, present=window != NO_WINDOW),
        )

    def _transfer_ids(self, rank: _Integers, position: _Integers) -> Ids:
        """Return the ids of transfers, and remember them for the links of waits."""
        ids = self._ids_of_transfers[rank, position] = self._layer_ids(TRANSFER, rank, position)
        return ids

    def _layer_ids(self, name: str, rank: _Integers, position: _Integers) -> Ids:
        """Return the ids of spans of layers, sorted by rank."""
        ids = [np.empty((0, 8), np.uint8)]
        for each in self._at.tolist():
            layers = [self._layers[index] for index in position[rank == each].tolist()]
            ids.append(self._ids(int(self._ranks[each]), name, layers))
        return np.concatenate(ids)

    def _source_ids(self) -> Ids:
        """Return the ids of the sources' broadcasts by position, including those that another host's daemon exports."""
        ids = np.empty((len(self._sources), 8), np.uint8)
        for source in set(self._sources.tolist()):
            kept = np.flatnonzero(self._sources == source)
            ids[kept] = self._ids(source, TRANSFER, [self._layers[index] for index in kept.tolist()])
        return ids

    def _ids(self, rank: int, name: str, layers: Iterable[bytes]) -> Ids:
        """Return the ids of spans of a global rank."""
        made = span_ids(self._step.series, self._step.step, rank, name, layers)
        return np.frombuffer(made, np.uint8).reshape(-1, 8)

    def _bounds(self) -> tuple[Nanoseconds, Nanoseconds]:
        """Return begin and end of the step on each rank. Without a STEP record, take them from the records present."""
        step = self._step
        begin, end = step.begin_ns.copy(), step.end_ns.copy()
        for rank in np.flatnonzero(~step.ended).tolist():
            columns = (step.issued_ns, step.ready_ns, step.wait_begin_ns, step.wait_end_ns)
            instants = np.concatenate([column[rank][step.present[rank]] for column in columns])
            instants = instants[instants > 0]
            begin[rank], end[rank] = (instants.min(), instants.max()) if instants.size else (0, 0)
        return begin, end

    def _unix(self, rank: _Integers, clock: _Whole, begin: Nanoseconds, end: Nanoseconds) -> Nanoseconds:
        """Return begin and end of spans as UNIX time."""
        times = self._shown.unix_ns(np.stack([begin, end]), rank, clock == Clock.VIRTUAL)
        return np.maximum.accumulate(times)


def _flag(name: str, present: Mask) -> Attribute:
    """Return an attribute that is true on the spans that have it."""
    return Attribute(name, np.zeros(len(present), np.int64), (True,), present)
