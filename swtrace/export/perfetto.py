"""Write a Perfetto trace, which ``ui.perfetto.dev`` opens and ``trace_processor`` queries with SQL.

Each rank is a track with a track for each series. Below are tracks for its steps, its waits (with the stall nested in
them), its sends and each window. A window's slices are broadcasts from issue to ready, which never overlap; in a pull
series, they are copies, and nobody sends.
Flows lead from the source's send to each receiver's broadcast, and from the broadcast to its wait. Each slice has its
facts as arguments, in nanoseconds. All instants are UNIX time, so that several hosts fit in one trace.

The protobuf wire format is written by hand for a dozen fields. Perfetto's official Python schema alone is 1.7 MB, and
its runtime would be another dependency. Tests read the result back with that schema.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO

import numpy as np

from swtrace.ledger.facts import CAUSES, SeriesKey, StepFacts
from swtrace.spans.origins import Origins, SpanOrigin, step_origins
from swtrace.spans.step_spans import step_clock, step_ranks, transfers, waits
from swtrace.trace.identity import RankIdentity, RankKey
from swtrace.trace.schema import Phase, TransferFlag

_BEGIN, _END, _INSTANT = 1, 2, 3
_SEQUENCE = 1
_CLEARED, _NEEDS = 1, 2
_EXPLICIT_ORDER = 3
_REALTIME_CLOCK, _BOOT_CLOCK = 1, 6

# Field numbers of perfetto.protos, by message.
_PACKET = {"snapshot": 6, "timestamp": 8, "sequence": 10, "event": 11, "interned": 12, "flags": 13, "track": 60}
_TRACK = {"uuid": 1, "name": 2, "parent": 5, "ordering": 11, "rank": 12}
_EVENT = {"annotation": 4, "type": 9, "name_iid": 10, "track": 11, "categories": 22, "flow": 47, "last_flow": 48}
_ANNOTATION = {"name_iid": 1, "int": 4, "string": 6}
_INTERNED_NAMES, _INTERNED_ANNOTATIONS = 2, 3

_ORDER = {"steps": 0, "waits": 1, "sends": 10, "window": 100}
Arguments = dict[str, int | str]


@dataclass(slots=True)
class PerfettoStatistics:
    """Counts of what was written."""

    steps: int = 0
    """Slices ``step ...``, one per rank and step."""
    broadcasts: int = 0
    """Slices in window tracks."""
    sends: int = 0
    waits: int = 0
    flows: int = 0
    """Flows from a broadcast to its wait."""
    stall_ns: int = 0


@dataclass(slots=True)
class _Rank:
    """The track of one series on one rank."""

    uuid: int
    lanes: list[int] = field(default_factory=list)
    """For each lane of sends, the instant until which it is busy."""


class PerfettoWriter:
    """Writes a trace to a file, step by step.

    Args:
        out: The file to write to.
        identities: The identities of the ranks.
        origins: The origins of the ranks, with their clocks. Ranks without an origin are skipped.
    """

    def __init__(self, out: BinaryIO, identities: Iterable[RankIdentity], origins: Origins) -> None:
        self.statistics = PerfettoStatistics()
        self._out = out
        self._identities = {identity.key: identity for identity in identities}
        self._origins = origins
        self._names: dict[str, int] = {}
        self._arguments: dict[str, int] = {}
        self._fresh: list[bytes] = []
        self._tracks: set[int] = set()
        self._ranks: dict[tuple[SeriesKey, RankKey], _Rank] = {}
        self._begun = False
        self._packets = 0

    def write(self, steps: Iterable[StepFacts]) -> None:
        """Write steps in the order in which they finished."""
        for step in steps:
            origins = step_origins(step, self._origins)
            for rank in np.flatnonzero(step_ranks(step)).tolist():
                origin = origins[rank]
                if origin is not None:
                    self._write_rank(step, rank, origin)

    # One rank of one step

    def _write_rank(self, step: StepFacts, rank: int, origin: SpanOrigin) -> None:
        at = self._rank(step, rank)
        if step.ended[rank]:
            self._write_step(at, step, rank, origin)
        has_broadcast, has_wait = transfers(step)[rank], waits(step)[rank]
        for position in np.flatnonzero(has_broadcast).tolist():
            self._write_broadcast(at, step, rank, position, origin)
        for position in np.flatnonzero(has_wait).tolist():
            self._write_wait(at, step, rank, position, origin, flows=bool(has_broadcast[position]))

    def _write_step(self, at: _Rank, step: StepFacts, rank: int, origin: SpanOrigin) -> None:
        clock = step_clock(step.infos[rank])
        begin, end = (origin.unix_ns(int(instant[rank]), clock) for instant in (step.begin_ns, step.end_ns))
        track = self._track(at, "steps", "steps", _ORDER["steps"])
        phase = Phase(int(step.phase[rank])).name.lower() if step.phase[rank] < len(Phase) else "other"
        arguments: Arguments = {
            "step": step.step,
            "tokens": int(step.tokens[rank]),
            "requests": int(step.requests[rank]),
            **(
                {"stall_ns": int(step.stall_ns[rank].sum()), "transfer_ns": int(step.transfer_ns[rank].sum())}
                if step.shared
                else {}
            ),
            **({"entry_skew_ns": int(step.entry_skew_ns[rank])} if step.entry_known else {}),
            **(
                {"clock_bound_ns": bound_ns} if (bound_ns := int(step.clock_bound_ns[rank])) and step.comparable else {}
            ),
            "run_delay_us": int(step.run_delay_us[rank]),
            "steal_us": int(step.steal_us[rank]),
        }
        self._slice(track, f"step ({phase})", "step", begin, end, arguments)
        self.statistics.steps += 1

    def _write_broadcast(self, at: _Rank, step: StepFacts, rank: int, position: int, origin: SpanOrigin) -> None:
        clock = int(step.clock[rank, position])
        issued, ready = int(step.issued_ns[rank, position]), int(step.ready_ns[rank, position])
        begin = origin.unix_ns(issued, clock)
        end = origin.unix_ns(ready, clock) if ready > 0 else 0
        layer = step.layers[position]
        info = step.infos[rank]
        from_rank = info is None or info.from_ranks
        source = {"source_rank": step.ranks[int(step.source[position])].rank} if from_rank else {}
        arguments: Arguments = {"step": step.step, **source, "bytes": 0 if info is None else info.layer_bytes}
        name, flow = f"layer {layer}", self._flow("send", step, position, 0)
        if from_rank and int(step.source[position]) == rank:
            self.statistics.sends += 1
            if end <= begin:  # its completion was not observed
                track = self._track(at, "sends", "sends", _ORDER["sends"])
                self._event(track, begin, _INSTANT, name, "send", arguments, flows=(flow,))
                return
            lane = next((index for index, busy in enumerate(at.lanes) if busy <= begin), len(at.lanes))
            at.lanes[lane : lane + 1] = [end]
            label = "sends" if lane == 0 else f"sends {lane + 1}"
            track = self._track(at, label, label, _ORDER["sends"] + lane)
            self._slice(track, name, "send", begin, end, arguments, flows=(flow,))
            return
        window = int(step.window[rank, position])
        track = self._track(at, f"window {window}", f"window {window}", _ORDER["window"] + window)
        if step.attributed[rank, position]:
            arguments["transfer_ns"] = int(step.transfer_ns[rank, position])
            arguments["backlog_ns"] = int(step.backlog_ns[rank, position])
        copies = step.of_rank is not None
        self._slice(
            track,
            name,
            "copy" if copies else "broadcast",
            begin,
            max(begin, end),
            arguments,
            flows=(self._flow("wait", step, position, rank),),
            last_flows=() if copies else (flow,),
        )
        self.statistics.broadcasts += 1

    def _write_wait(
        self, at: _Rank, step: StepFacts, rank: int, position: int, origin: SpanOrigin, *, flows: bool
    ) -> None:
        clock = int(step.clock[rank, position])
        begin, end = (
            origin.unix_ns(int(instants[rank, position]), clock) for instants in (step.wait_begin_ns, step.wait_end_ns)
        )
        stall = int(step.stall_ns[rank, position])
        track = self._track(at, "waits", "waits", _ORDER["waits"])
        own = bool(int(step.flags[rank, position]) & TransferFlag.OWN)
        layer = step.layers[position]
        arguments: Arguments = {
            "step": step.step,
            "layer": layer,
            "stall_ns": stall,
            "slack_ns": int(step.slack_ns[rank, position]),
            "wake_ns": int(step.wake_ns[rank, position]),
        }
        flowing = flows and not own
        last = (self._flow("wait", step, position, rank),) if flowing else ()
        self._event(track, begin, _BEGIN, f"layer {layer}{' (own)' if own else ''}", "wait", arguments, last_flows=last)
        if stall:
            causes = zip(CAUSES, step.cause_ns[:, rank, position].tolist(), strict=True)
            split: Arguments = {f"{cause}_ns": cause_ns for cause, cause_ns in causes if cause_ns}
            late = int(step.late_rank[rank, position])
            if late >= 0:
                split["late_rank"] = step.ranks[late].rank
            self._slice(track, "stall", "stall", begin, begin + stall, split)
        self._event(track, max(begin + stall, end), _END, "", "", {})
        self.statistics.waits += 1
        self.statistics.flows += flowing
        self.statistics.stall_ns += stall

    # Tracks

    def _rank(self, step: StepFacts, rank: int) -> _Rank:
        key = (step.series, step.ranks[rank])
        known = self._ranks.get(key)
        if known is None:
            identity = self._identities.get(step.ranks[rank])
            host = "" if identity is None else f" ({identity.host}, pid {identity.pid})"
            run = _hash("rank", key[1].run_id, str(key[1].rank))
            self._describe(run, f"rank {key[1].rank}{host}, run {key[1].run_id}", parent=0, order=key[1].rank)
            uuid = _hash("series", str(step.series), str(key[1].rank))
            self._describe(uuid, step.series.name, parent=run, order=step.series.start_layer)
            known = self._ranks[key] = _Rank(uuid)
        return known

    def _track(self, at: _Rank, name: str, label: str, order: int) -> int:
        uuid = _hash("track", str(at.uuid), name)
        self._describe(uuid, label, parent=at.uuid, order=order)
        return uuid

    def _describe(self, uuid: int, name: str, *, parent: int, order: int) -> None:
        if uuid in self._tracks:
            return
        self._tracks.add(uuid)
        track = _number(_TRACK["uuid"], uuid) + _text(_TRACK["name"], name)
        if parent:
            track += _number(_TRACK["parent"], parent)
        track += _number(_TRACK["ordering"], _EXPLICIT_ORDER) + _number(_TRACK["rank"], order)
        self._packet(_message(_PACKET["track"], track))

    def _flow(self, kind: str, step: StepFacts, position: int, rank: int) -> int:
        return _hash("flow", kind, str(step.series), f"{step.step}/{position}/{rank}")

    # Events and packets

    def _slice(
        self,
        track: int,
        name: str,
        category: str,
        begin: int,
        end: int,
        arguments: Arguments,
        *,
        flows: tuple[int, ...] = (),
        last_flows: tuple[int, ...] = (),
    ) -> None:
        self._event(track, begin, _BEGIN, name, category, arguments, flows=flows, last_flows=last_flows)
        self._event(track, end, _END, "", "", {})

    def _event(
        self,
        track: int,
        at_ns: int,
        kind: int,
        name: str,
        category: str,
        arguments: Arguments,
        *,
        flows: tuple[int, ...] = (),
        last_flows: tuple[int, ...] = (),
    ) -> None:
        if not self._begun:
            self._begin(at_ns)
        parts = [_number(_EVENT["type"], kind), _number(_EVENT["track"], track)]
        if name:
            parts.append(_number(_EVENT["name_iid"], self._interned(self._names, _INTERNED_NAMES, name)))
            parts.append(_text(_EVENT["categories"], category))
        for argument, value in arguments.items():
            iid = self._interned(self._arguments, _INTERNED_ANNOTATIONS, argument)
            held = _text(_ANNOTATION["string"], value) if isinstance(value, str) else _number(_ANNOTATION["int"], value)
            parts.append(_message(_EVENT["annotation"], _number(_ANNOTATION["name_iid"], iid) + held))
        parts += [_fixed(_EVENT["flow"], flow) for flow in flows]
        parts += [_fixed(_EVENT["last_flow"], flow) for flow in last_flows]
        self._packet(_number(_PACKET["timestamp"], at_ns) + _message(_PACKET["event"], b"".join(parts)))

    def _interned(self, known: dict[str, int], kind: int, name: str) -> int:
        iid = known.get(name)
        if iid is None:
            iid = known[name] = len(known) + 1
            self._fresh.append(_message(kind, _number(1, iid) + _text(2, name)))
        return iid

    def _begin(self, at_ns: int) -> None:
        """Write that the trace's clock is UNIX time."""
        self._begun = True
        clocks = (_message(1, _number(1, clock) + _number(2, at_ns)) for clock in (_REALTIME_CLOCK, _BOOT_CLOCK))
        self._packet(_number(_PACKET["timestamp"], at_ns) + _message(_PACKET["snapshot"], b"".join(clocks)))

    def _packet(self, content: bytes) -> None:
        flags = _NEEDS if self._packets else _CLEARED | _NEEDS
        self._packets += 1
        content += _number(_PACKET["sequence"], _SEQUENCE) + _number(_PACKET["flags"], flags)
        if self._fresh:
            content += _message(_PACKET["interned"], b"".join(self._fresh))
            self._fresh.clear()
        self._out.write(_message(1, content))


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little") or 1


def _varint(value: int) -> bytes:
    """Return an unsigned number of up to 64 bits as a varint."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    """Return a field with a number."""
    return _varint(field << 3) + _varint(value)


def _fixed(field: int, value: int) -> bytes:
    """Return a field with a fixed size of eight bytes."""
    return _varint(field << 3 | 1) + struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def _message(field: int, content: bytes) -> bytes:
    """Return a field with bytes or another message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, value: str) -> bytes:
    """Return a field with text."""
    return _message(field, value.encode())
