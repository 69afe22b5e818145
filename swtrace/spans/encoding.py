"""Encode spans as OTLP without an object per span: NumPy writes all spans of a table at once, one row of bytes each.

The row templates are serialized from OpenTelemetry's messages, so this module contains no field numbers. Ids, instants
and numbers are written into the rows, and fields that a span lacks are cut out. The result equals, byte for byte, that
of OpenTelemetry's encoder for the same spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import overload

import numpy as np
import numpy.typing as npt
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from swtrace.ledger.facts import Mask
from swtrace.spans.step_spans import ABORTED, SCOPE, Attribute, SpanTable, StepSpans, Value

_Bytes = npt.NDArray[np.uint8]
_Block = tuple[_Bytes, Mask | None]
"""The bytes of a field, ``[span, byte]``, with one row if all spans have the same; and which bytes each span has."""
_SHIFTS = np.arange(0, 70, 7, dtype=np.uint64)
"""Shifts of a varint's bytes: a number takes up to ten bytes of seven bits each, lowest bits first."""
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK

_RESOURCE_TAG: bytes = ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()[:-1]
_SCOPE_TAG: bytes = ResourceSpans(scope_spans=[ScopeSpans()]).SerializeToString()[:-1]
_SPAN_TAG: bytes = ScopeSpans(spans=[Span()]).SerializeToString()[:-1]
"""The tag of each field, which precedes its length."""


class EncodedRequest(bytes):
    """The bytes of an ``ExportTraceServiceRequest``, with the message's methods for serialization."""

    __slots__ = ()

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """Return the bytes."""
        return self

    SerializePartialToString = SerializeToString


@dataclass(frozen=True, slots=True)
class SpanBatch(Sequence[ReadableSpan]):
    """Spans in the form that exporters accept: a sequence of objects, made on demand, or one encoded request."""

    steps: Sequence[StepSpans]
    first: int
    last: int
    """Range of the spans in the concatenated steps: ``first`` to ``last``, excluding ``last``."""

    def __len__(self) -> int:
        """Return the number of spans."""
        return self.last - self.first

    @overload
    def __getitem__(self, index: int) -> ReadableSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadableSpan]: ...
    def __getitem__(self, index: int | slice) -> ReadableSpan | list[ReadableSpan]:
        """Return a span or a slice of spans."""
        return list(self)[index]

    def __iter__(self) -> Iterator[ReadableSpan]:
        """Iterate over the spans."""
        return iter(list(chain.from_iterable(self.steps))[self.first : self.last])

    def request(self) -> EncodedRequest:
        """Return the same request that OpenTelemetry's encoder makes of these spans."""
        by_resource: dict[Resource, list[bytes]] = {}
        begin = 0
        for step in self.steps:
            for resource, run_first, run_last in step.runs:
                first, last = max(self.first - begin, run_first), min(self.last - begin, run_last)
                if first < last:
                    by_resource.setdefault(resource, []).extend(_encoded(step)[first:last])
            begin += len(step)
        return EncodedRequest(b"".join(_in_resource(resource, spans) for resource, spans in by_resource.items()))


def batches(steps: Sequence[StepSpans], size: int) -> list[SpanBatch]:
    """Return all spans of the steps, in batches of at most ``size``."""
    spans = sum(map(len, steps))
    return [SpanBatch(steps, first, min(first + size, spans)) for first in range(0, spans, size)]


def _in_resource(resource: Resource, spans: Sequence[bytes]) -> bytes:
    """Return the spans of a resource, encoded as in a request."""
    about, scope, scope_end, end = _envelope(resource)
    of_scope = _SCOPE_TAG + _with_length(b"".join((scope, *spans, scope_end)))
    return _RESOURCE_TAG + _with_length(about + of_scope + end)


@lru_cache(maxsize=1024)
def _envelope(resource: Resource) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what OpenTelemetry sends around a resource's spans: resource, scope, end of scope, end of resource."""
    request = encode_spans([ReadableSpan("", INVALID_SPAN_CONTEXT, resource=resource, instrumentation_scope=SCOPE)])
    around = request.resource_spans[0]
    scope = around.scope_spans[0]
    return (
        _wire(ResourceSpans(resource=around.resource)),
        _wire(ScopeSpans(scope=scope.scope)),
        _wire(ScopeSpans(schema_url=scope.schema_url)),
        _wire(ResourceSpans(schema_url=around.schema_url)),
    )


def _with_length(content: bytes) -> bytes:
    """Return the content of a message, preceded by its length."""
    length, _ = _numbers(np.array([len(content)]))
    return bytes(length) + content


@lru_cache(maxsize=1)
def _encoded(step: StepSpans) -> list[bytes]:
    """Return the spans of a step in order, encoded as in a ``ScopeSpans``. Cached for a step with several batches."""
    spans = list(chain.from_iterable(_rows(table) for table in step.tables if len(table.rank)))
    return [spans[index] for index in step.order]


def _rows(table: SpanTable) -> Iterator[bytes]:
    """Return each span of a table, encoded as in a ``ScopeSpans``."""
    fields = list(_fields(table))
    lengths = _lengths(fields, len(table.rank))
    blocks = [_same(_SPAN_TAG), _numbers(lengths)]
    ends = np.cumsum(lengths + _lengths(blocks, len(lengths))).tolist()
    blocks += fields
    shape = (len(lengths), sum(block.shape[1] for block, _ in blocks))
    rows, kept = np.empty(shape, np.uint8), np.ones(shape, np.bool_)
    at = 0
    for block, mask in blocks:
        to = at + block.shape[1]
        rows[:, at:to] = block
        if mask is not None:
            kept[:, at:to] = mask
        at = to
    content = rows[kept].tobytes()
    return (content[begin:end] for begin, end in pairwise([0, *ends]))


def _lengths(blocks: Sequence[_Block], spans: int) -> npt.NDArray[np.int64]:
    """Return the number of bytes of each span."""
    lengths = np.zeros(spans, np.int64)
    for block, mask in blocks:
        width = block.shape[1]
        lengths += width if mask is None else np.count_nonzero(mask, axis=1) * (width // mask.shape[1])
    return lengths


def _fields(table: SpanTable) -> Iterator[_Block]:
    """Yield the fields of the spans in the order of their field numbers."""
    no_id, kind = bytes(8), Span.SpanKind.SPAN_KIND_INTERNAL
    yield _same(_wire(Span(trace_id=table.trace_id)))
    yield _differing(_wire(Span(span_id=no_id)), table.ids)
    if table.parents is not None:
        yield _differing(_wire(Span(parent_span_id=no_id)), table.parents)
    yield _same(_wire(Span(name=table.name, kind=kind)))
    for instants, template in (
        (table.begin_ns, Span(start_time_unix_nano=1)),
        (table.end_ns, Span(end_time_unix_nano=1)),
    ):
        instants_bytes = instants.astype("<i8").view(np.uint8).reshape(-1, 8)
        yield _differing(_wire(template), instants_bytes, None if instants.all() else (instants != 0)[:, None])
    for attribute in table.attributes:
        yield _attribute(attribute)
    for each in range(max(map(len, table.requests), default=0)):
        yield _request_links([links[each] if each < len(links) else None for links in table.requests])
    if table.links is not None and table.linked is not None:
        flags = _REMOTE if table.links_to_other_rank else _LOCAL
        link = Span(links=[Span.Link(trace_id=table.trace_id, span_id=no_id, flags=flags)])
        yield _differing(_wire(link), table.links, table.linked[:, None], after=len(_wire(Span.Link(flags=flags))))
    if table.aborted is not None:
        error = Span(status=Status(code=Status.STATUS_CODE_ERROR, message=ABORTED))
        yield _same(_wire(error), table.aborted[:, None])
        yield _same(_wire(Span(status=Status())), ~table.aborted[:, None])
        yield _same(_wire(Span(flags=_LOCAL)))
    else:
        yield _same(_wire(Span(status=Status(), flags=_LOCAL)))


def _request_links(links: Sequence[tuple[int, int] | None]) -> _Block:
    """Return one link per span to a request's trace context, for the spans that have one."""
    wires = []
    for trace, span in (link or (0, 0) for link in links):
        context = Span.Link(trace_id=trace.to_bytes(16, "big"), span_id=span.to_bytes(8, "big"), flags=_REMOTE)
        wires.append(_wire(Span(links=[context])))
    present = np.array([link is not None for link in links], np.bool_)
    return np.frombuffer(b"".join(wires), np.uint8).reshape(len(wires), -1), present[:, None]


def _attribute(attribute: Attribute) -> _Block:
    values, present = attribute.values, None if attribute.present is None else attribute.present[:, None]
    if len(attribute.choices) == 1 or values.min() == values.max():
        value = attribute.choices[values[0]] if attribute.choices else int(values[0])
        return _same(_key_value(attribute.name, value), present)
    if attribute.choices:
        block, mask = _chosen([_key_value(attribute.name, choice) for choice in attribute.choices], values)
    else:
        block, mask = _numbered(attribute.name, values)
    return block, present if mask is None else mask if present is None else mask & present


def _chosen(wires: Sequence[bytes], index: npt.NDArray[np.integer]) -> _Block:
    """Return for each span one of several byte strings."""
    shape = (len(wires), max(map(len, wires)))
    texts, used = np.zeros(shape, np.uint8), np.zeros(shape, np.bool_)
    for each, wire in enumerate(wires):
        texts[each, : len(wire)], used[each, : len(wire)] = np.frombuffer(wire, np.uint8), True
    return texts[index], used[index]


def _numbered(name: str, values: npt.NDArray[np.integer]) -> _Block:
    """Return a numeric attribute. Its length fields depend on the length of the number."""
    numbers, mask = _numbers(values)
    size = numbers.shape[1]
    longest = _key_value(name, (1 << 7 * size - 1) - 1 if size < _SHIFTS.size else -1)
    block, _ = _differing(longest, numbers)
    if mask is None:
        return block, None
    shorter = size - np.count_nonzero(mask, axis=1).astype(np.uint8)
    block[:, 1] -= shorter  # of the attribute
    block[:, -size - 2] -= shorter  # of its value
    return block, np.concatenate([np.ones((len(block), block.shape[1] - size), np.bool_), mask], axis=1)


def _numbers(values: npt.NDArray[np.integer]) -> _Block:
    """Return numbers as protobuf varints."""
    unsigned = values.astype(np.int64).view(np.uint64)
    size = max(1, -(-int(unsigned.max()).bit_length() // 7))
    shifted = unsigned[:, None] >> _SHIFTS[:size]
    mask = shifted != 0
    mask[:, 0] = True
    block = shifted.astype(np.uint8)
    block &= 0x7F
    block[:, :-1] |= mask[:, 1:].view(np.uint8) << 7
    return block, None if mask[:, -1].all() else mask


def _key_value(name: str, value: Value) -> bytes:
    if isinstance(value, bool):
        any_value = AnyValue(bool_value=value)
    else:
        any_value = AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    return _wire(Span(attributes=[KeyValue(key=name, value=any_value)]))


def _same(wire: bytes, present: Mask | None = None) -> _Block:
    """Return a field that is the same in every span that has it."""
    return np.frombuffer(wire, np.uint8)[None], present


def _differing(template: bytes, values: _Bytes, present: Mask | None = None, *, after: int = 0) -> _Block:
    """Return a template with each span's bytes written at its end, or ``after`` bytes before the end."""
    block = np.empty((len(values), len(template)), np.uint8)
    block[:] = np.frombuffer(template, np.uint8)
    end = len(template) - after
    block[:, end - values.shape[1] : end] = values
    return block, present


def _wire(message: Span | Span.Link | ScopeSpans | ResourceSpans) -> bytes:
    return bytes(message.SerializeToString())
