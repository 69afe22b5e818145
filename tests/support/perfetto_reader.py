"""Read a Perfetto trace with Perfetto's schema, and assemble slices and flows as its trace processor does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2


@dataclass
class Slice:
    """One slice, or an instant without duration."""

    track: tuple[str, ...]
    name: str
    category: str
    begin_ns: int
    end_ns: int
    depth: int
    arguments: dict[str, Any]
    flows_out: list[int] = field(default_factory=list)
    flows_in: list[int] = field(default_factory=list)


def read(path: Path) -> list[Slice]:
    """Return all slices; fail on anything that a trace processor would count as an error."""
    trace = perfetto_trace_pb2.Trace.FromString(path.read_bytes())
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == path.stat().st_size  # no field that the schema does not know
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    tracks: dict[int, tuple[str, int]] = {}
    events = []
    for number, packet in enumerate(trace.packet):
        assert packet.trusted_packet_sequence_id == 1
        assert bool(packet.sequence_flags & 1) == (number == 0)
        names.update((each.iid, each.name) for each in packet.interned_data.event_names)
        arguments.update((each.iid, each.name) for each in packet.interned_data.debug_annotation_names)
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            assert descriptor.uuid not in tracks
            tracks[descriptor.uuid] = (descriptor.name, descriptor.parent_uuid)
        if packet.HasField("track_event"):
            assert packet.track_event.track_uuid in tracks
            events.append((packet.timestamp, packet.track_event))
    events.sort(key=lambda event: event[0])

    def path_of(uuid: int) -> tuple[str, ...]:
        name, parent = tracks[uuid]
        return (*path_of(parent), name) if parent else (name,)

    kinds = perfetto_trace_pb2.TrackEvent.Type
    stacks: dict[int, list[Slice]] = {}
    found = []
    for at, event in events:
        stack = stacks.setdefault(event.track_uuid, [])
        if event.type == kinds.TYPE_SLICE_END:
            stack.pop().end_ns = at
            continue
        values = {arguments[each.name_iid]: each.int_value for each in event.debug_annotations}
        flows = list(event.flow_ids), list(event.terminating_flow_ids)
        made = Slice(
            path_of(event.track_uuid), names[event.name_iid], event.categories[0], at, at, len(stack), values, *flows
        )
        found.append(made)
        if event.type == kinds.TYPE_SLICE_BEGIN:
            if stack:
                assert made.category == "stall", "slices of one track overlap"
            stack.append(made)
    assert not any(stacks.values()), "slices that never end"
    return found
