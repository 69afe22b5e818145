"""Encode and decode the parts of a ring file other than records: header, rank identity, series table entries.

Decoding trusts nothing. Sizes are fixed, JSON is bounded by its slot and covered by a checksum, and
every value is checked for type and range. Text must be printable, because it is shown in terminals and
label values. Any defect raises :class:`~swtrace.errors.RingFormatError` and nothing else.

Standard library only, because ranks load this module.
"""

from __future__ import annotations

import fcntl
import json
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from swtrace.errors import RingFormatError, RingFullError
from swtrace.plan_file import Interval
from swtrace.trace import schema
from swtrace.trace.identity import Offload, Planned, RankIdentity, SeriesInfo, UntracedRank, Workload

MAX_LAYERS = 4096
MAX_GROUP = 4096
MAX_CELLS = 1 << 20
"""Most layers times ranks of a series, because a reader may have to hold that many for each step."""
_MAX_INT = (1 << 63) - 1
_MAX_PARAMS = schema.SERIES_SLOT_BYTES // len('"",')
MAX_TEXT = 2048
"""Most characters of one text in a ring."""


@dataclass(frozen=True, slots=True)
class RingHeader:
    """The contents of a ring's fixed header."""

    capacity: int
    """Number of records; a power of two."""
    epoch_ns: int
    """CLOCK_MONOTONIC of the creation."""
    created_ns: int
    """CLOCK_REALTIME of the creation."""
    checked: bool
    """Whether records carry check words."""
    identity: RankIdentity

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return file_bytes(self.capacity)


def file_bytes(capacity: int) -> int:
    """Return the size of a ring file with ``capacity`` records."""
    return schema.HEADER_BYTES + capacity * schema.RECORD_BYTES


def encode_header(header: RingHeader) -> tuple[bytes, bytes]:
    """Return the fixed words and the identity's JSON.

    Raises:
        RingFullError: the identity does not fit its slot.
    """
    identity = encode_identity(header.identity)
    if len(identity) > schema.IDENTITY_BYTES:
        raise RingFullError(
            f"the rank's identity takes {len(identity)} bytes of JSON; a ring has room for {schema.IDENTITY_BYTES}"
        )
    fixed = schema.HEADER.pack(
        schema.MAGIC,
        schema.VERSION,
        schema.HEADER_BYTES,
        schema.RECORD_BYTES,
        header.capacity,
        schema.IDENTITY_OFFSET,
        len(identity),
        zlib.crc32(identity),
        schema.SERIES_TABLE_OFFSET,
        schema.SERIES_SLOTS,
        schema.SERIES_SLOT_BYTES,
        schema.WINDOW_TABLE_OFFSET,
        schema.WINDOW_SLOTS,
        header.epoch_ns,
        header.created_ns,
        int(header.checked),
    )
    return fixed, identity


def decode_header(data: bytes, size: int) -> RingHeader:
    """Read a ring's header from the first ``IDENTITY_OFFSET + IDENTITY_BYTES`` bytes of a file of ``size`` bytes.

    Raises:
        RingFormatError: this is not a valid ring; the message says why.
    """
    if len(data) < schema.IDENTITY_OFFSET + schema.IDENTITY_BYTES:
        raise RingFormatError(f"too short for a ring ({size} bytes)")
    magic, version, *words = schema.HEADER.unpack_from(data)
    if magic != schema.MAGIC:
        raise RingFormatError("not a swtrace ring (wrong magic)")
    if version != schema.VERSION:
        raise RingFormatError(f"ring format {version}; this swtrace reads format {schema.VERSION}")
    header_bytes, record_bytes, capacity, identity_offset, identity_length, identity_crc, *rest = words
    series_offset, series_slots, series_bytes, window_offset, window_slots, epoch_ns, created_ns, checked = rest
    layout = (header_bytes, record_bytes, identity_offset, series_offset, series_slots, series_bytes)
    if layout != _LAYOUT or (window_offset, window_slots) != (schema.WINDOW_TABLE_OFFSET, schema.WINDOW_SLOTS):
        raise RingFormatError("damaged header (offsets or sizes do not fit the format)")
    if not schema.MIN_RECORDS <= capacity <= schema.MAX_RECORDS or capacity & (capacity - 1):
        raise RingFormatError(f"damaged header (capacity {capacity})")
    if size != file_bytes(capacity):
        raise RingFormatError(f"{size} bytes instead of {file_bytes(capacity)}: truncated, or not a ring")
    if identity_length > schema.IDENTITY_BYTES or checked > 1 or epoch_ns > _MAX_INT or created_ns > _MAX_INT:
        raise RingFormatError("damaged header (values out of range)")
    text = data[schema.IDENTITY_OFFSET : schema.IDENTITY_OFFSET + identity_length]
    if zlib.crc32(text) != identity_crc:
        raise RingFormatError("damaged identity (checksum)")
    identity = decode_identity(text)
    return RingHeader(capacity, epoch_ns, created_ns, bool(checked), identity)


def encode_identity(identity: RankIdentity) -> bytes:
    """Return an identity as JSON that contains only printable text, without its workload if it does not fit a ring."""
    text = _encode(asdict(identity))
    return text if len(text) <= schema.IDENTITY_BYTES else _encode(asdict(replace(identity, workload=Workload())))


def decode_identity(text: bytes) -> RankIdentity:
    """Return the identity that :func:`encode_identity` was given.

    Raises:
        RingFormatError: the text is damaged, or its values are out of range.
    """
    fields = _Fields(_decode(text))
    workload = fields.object("workload")
    return RankIdentity(
        run_id=fields.text("run_id", empty=False),
        rank=fields.integer("rank", 0, (1 << 31) - 1),
        host=fields.text("host"),
        boot_id=fields.text("boot_id"),
        pid=fields.integer("pid", 0, (1 << 31) - 1),
        start_time_ns=fields.integer("start_time_ns", 0, _MAX_INT),
        model=fields.text("model"),
        version=fields.text("version"),
        clock_offset=fields.text("clock_offset", empty=False),
        workload=Workload(**{name: workload.text(name, absent="") for name in asdict(Workload())}),
    )


_LAYOUT = (
    schema.HEADER_BYTES,
    schema.RECORD_BYTES,
    schema.IDENTITY_OFFSET,
    schema.SERIES_TABLE_OFFSET,
    schema.SERIES_SLOTS,
    schema.SERIES_SLOT_BYTES,
)


def encode_series(info: SeriesInfo, first_window: int) -> bytes:
    """Return a series table entry: length, checksum, JSON.

    In a very large group, shorten the reasons of untraced ranks as needed, and leave out the plan if it does not fit.

    Raises:
        RingFullError: the entry does not fit its slot.
    """
    for characters, with_plan in _ATTEMPTS:
        described = asdict(info if with_plan else replace(info, planned=None))
        named = info.untraced if characters is not None else ()
        untraced = [{"rank": rank.rank, "reason": rank.reason[:characters]} for rank in named]
        fields = {**described, "layers": _mask(info), "untraced": untraced, "first_window": first_window}
        text = _encode(fields)
        if schema.SERIES_ENTRY.size + len(text) <= schema.SERIES_SLOT_BYTES:
            return schema.SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text
    raise RingFullError(
        f"series {info.name!r}: its description takes {len(text)} bytes of JSON"
        f" (group of {len(info.group_ranks)} ranks); a ring has room for {schema.SERIES_SLOT_BYTES} per series"
    )


def _mask(info: SeriesInfo) -> str:
    """Return the shared layers as a number in hexadecimal, whose bits stand for the layers of the stack.

    Runs such as ``0-40:2`` are shorter for most series. But this fits a slot whatever the layers are.
    """
    return f"{sum(1 << layer - info.start_layer for layer in info.layers):x}"


_ATTEMPTS = ((300, True), (60, True), (0, True), (0, False), (None, False))
"""Lengths of the reasons to try, with or without the plan. None: leave out the untraced ranks, as in a very large
group."""


def decode_series(slot: bytes) -> tuple[SeriesInfo, int]:
    """Read a series table entry. Return the series and the first of its window slots.

    Raises:
        RingFormatError: the entry is damaged, or its values are out of range.
    """
    if len(slot) < schema.SERIES_ENTRY.size:
        raise RingFormatError("damaged series entry (truncated)")
    length, crc = schema.SERIES_ENTRY.unpack_from(slot)
    text = slot[schema.SERIES_ENTRY.size : schema.SERIES_ENTRY.size + length]
    if len(text) != length or zlib.crc32(text) != crc:
        raise RingFormatError("damaged series entry (checksum)")
    fields = _Fields(_decode(text))
    group_ranks = fields.integers("group_ranks", MAX_GROUP, (1 << 31) - 1)
    refused = fields.text("refused")
    start_layer = fields.integer("start_layer", 0, (1 << 31) - 1)
    whole = fields.integer("num_layers", 0, MAX_LAYERS, absent=0)  # as it was written when all layers were shared
    stack_layers = fields.integer("stack_layers", 0 if refused else 1, MAX_LAYERS, absent=whole)
    info = SeriesInfo(
        name=fields.text("name", empty=False),
        start_layer=start_layer,
        stack_layers=stack_layers,
        layers=tuple(start_layer + index for index in fields.bits("layers", stack_layers, absent=whole)),
        prefetch_step=fields.integer("prefetch_step", 0, MAX_LAYERS),
        windows=fields.text("windows"),
        window_count=fields.integer("window_count", 0, schema.WINDOW_SLOTS),
        group_ranks=group_ranks,
        rank_in_group=fields.integer("rank_in_group", 0, max(0, len(group_ranks) - 1)),
        transport=fields.text("transport"),
        rendezvous=fields.text("rendezvous"),
        clock=fields.text("clock"),
        layer_bytes=fields.integer("layer_bytes", 0, 1 << 48),
        owned_layers=fields.integer("owned_layers", 0, MAX_LAYERS),
        kind=fields.text("kind"),
        refused=refused,
        queue=fields.text("queue"),
        tag_bytes=fields.integer("tag_bytes", 0, 1 << 16, absent=0),
        untraced=tuple(
            UntracedRank(rank.integer("rank", 0, (1 << 31) - 1), rank.text("reason"))
            for rank in fields.objects("untraced", MAX_GROUP)
        ),
        planned=_decode_planned(fields),
        offload=_decode_offload(fields),
    )
    first_window = fields.integer("first_window", 0, schema.WINDOW_SLOTS)
    reserved = 0 if refused else info.window_count
    if not (group_ranks and info.layers) and not refused:
        raise RingFormatError("damaged series entry (empty group or no layers)")
    if info.num_layers * max(1, len(group_ranks)) > MAX_CELLS or first_window + reserved > schema.WINDOW_SLOTS:
        raise RingFormatError("damaged series entry (values out of range)")
    if len(set(group_ranks)) != len(group_ranks):
        raise RingFormatError("damaged series entry (duplicate rank in the group)")
    return info, first_window


def _decode_planned(series: _Fields) -> Planned | None:
    if series.absent("planned"):
        return None
    fields = series.object("planned")
    return Planned(
        digest=fields.text("digest", empty=False),
        step_ns=fields.interval("step_ns"),
        stall_ratio=fields.interval("stall_ratio"),
        phase=fields.text("phase"),
        tokens=None if fields.absent("tokens") else fields.number("tokens"),
        differs=fields.text("differs"),
    )


def _decode_offload(series: _Fields) -> Offload | None:
    if series.absent("offload"):
        return None
    fields = series.object("offload")
    return Offload(
        group_size=fields.integer("group_size", 1, MAX_LAYERS),
        num_in_group=fields.integer("num_in_group", 1, MAX_LAYERS),
        buffer_bytes=fields.integer("buffer_bytes", 0, 1 << 48),
        pinned=fields.boolean("pinned"),
        params=fields.texts("params", _MAX_PARAMS),
        slots_may_collide=fields.boolean("slots_may_collide"),
    )


def writer_lives(descriptor: int) -> bool:
    """Return whether some process holds the writer's lock on the ring behind ``descriptor``.

    The probe takes a shared lock for a moment. Probes do not disturb each other, nor the writer, which takes its
    lock before its ring has the name under which it can be probed.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def printable(text: str) -> str:
    """Return ``text`` without what readers would refuse: unprintable characters are replaced, excess length is cut."""
    return "".join(character if character.isprintable() else "?" for character in text)[:MAX_TEXT]


class _Fields:
    """A decoded JSON object. Each value is checked for type and range when it is read."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def text(self, name: str, *, empty: bool = True, absent: str | None = None) -> str:
        value = self._values.get(name, absent)
        if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable() or not (value or empty):
            raise RingFormatError(f"damaged ring ({name} is not valid text)")
        return value

    def texts(self, name: str, length: int) -> tuple[str, ...]:
        return tuple(_Fields({name: value}).text(name) for value in self._list(name, length, "texts"))

    def integer(self, name: str, low: int, high: int, *, absent: int | None = None) -> int:
        value = self._values.get(name, absent)
        if type(value) is not int or not low <= value <= high:
            raise RingFormatError(f"damaged ring ({name} is not an integer from {low} to {high})")
        return value

    def boolean(self, name: str) -> bool:
        value = self._values.get(name)
        if type(value) is not bool:
            raise RingFormatError(f"damaged ring ({name} is neither true nor false)")
        return value

    def absent(self, name: str) -> bool:
        return self._values.get(name) is None

    def number(self, name: str) -> float:
        value = self._values.get(name)
        if not (type(value) is float or type(value) is int) or not 0 <= value <= _MAX_INT:
            raise RingFormatError(f"damaged ring ({name} is not a number from 0 to {_MAX_INT})")
        return float(value)

    def interval(self, name: str) -> Interval:
        ends = self.object(name)
        interval = Interval(ends.number("value"), ends.number("low"), ends.number("high"))
        if not interval.low <= interval.value <= interval.high:
            raise RingFormatError(f"damaged ring ({name} is not within its range)")
        return interval

    def bits(self, name: str, length: int, *, absent: int) -> tuple[int, ...]:
        """Return which of the lowest ``length`` bits are set in a number in hexadecimal; if absent, the first ones."""
        text = self.text(name, empty=False, absent=f"{(1 << absent) - 1:x}")
        if len(text) > length // 4 + 1 or not set(text) <= set("0123456789abcdef") or int(text, 16) >> length:
            raise RingFormatError(f"damaged ring ({name} is not a number of up to {length} bits)")
        number = int(text, 16)
        return tuple(index for index in range(length) if number >> index & 1)

    def object(self, name: str) -> _Fields:
        value = self._values.get(name, {})
        if type(value) is not dict:
            raise RingFormatError(f"damaged ring ({name} is not an object)")
        return _Fields(value)

    def objects(self, name: str, length: int) -> tuple[_Fields, ...]:
        values = self._values.get(name, [])
        if type(values) is not list or len(values) > length or not all(type(value) is dict for value in values):
            raise RingFormatError(f"damaged ring ({name} is not a list of up to {length} objects)")
        return tuple(_Fields(value) for value in values)

    def _list(self, name: str, length: int, of: str) -> list[Any]:
        values = self._values.get(name)
        if type(values) is not list or len(values) > length:
            raise RingFormatError(f"damaged ring ({name} is not a list of up to {length} {of})")
        return values

    def integers(self, name: str, length: int, high: int) -> tuple[int, ...]:
        values = self._list(name, length, "integers")
        if not all(type(value) is int and 0 <= value <= high for value in values):
            raise RingFormatError(f"damaged ring ({name} contains something other than integers from 0 to {high})")
        return tuple(values)


def _encode(values: dict[str, Any]) -> bytes:
    return json.dumps(_printable(values), separators=(",", ":")).encode("ascii")


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _printable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


def _decode(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RingFormatError("damaged ring (not JSON)") from error
    if not isinstance(values, dict):
        raise RingFormatError("damaged ring (not a JSON object)")
    return values
