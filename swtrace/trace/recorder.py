"""Writes a rank's ring. Each rank process has one recorder, which is the ring's only writer.

These invariants hold at every instant, even if the process is killed:

- The file gets its final name only after it is complete and the writer has locked it.
- A slot's sequence number is 0 from before its first byte changes until after its last byte has changed.
  So a record is either committed whole or absent.
- The series table's count is stored after the entry it counts.
- A mark is stored after the instant since when it holds.
- A window's issued instant is stored before its occupant, the layer that the window is for. Ready and in-use
  instants carry the occupant's generation, so readers ignore an instant of an earlier occupant.

All methods except :meth:`SeriesRecorder.window_ready` belong to one thread at a time: the one that runs
the forward. The hot path allocates nothing but integers, takes no lock and makes no system call.

The lock belongs to another file descriptor than the mapping. So a mapping that a forked child inherits, or that
outlives :meth:`Recorder.close`, cannot make a dead rank look alive.
"""

from __future__ import annotations

import logging
import mmap
import os
import platform
import socket
import struct
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from swtrace.errors import RingCreateError, RingFullError, TraceError
from swtrace.trace import schema
from swtrace.trace.clocks import ClockAnchor, boot_id, clock_offset, now_ns
from swtrace.trace.directory import DEFAULT_KEEP_S, ring_name
from swtrace.trace.header import MAX_TEXT, RingHeader, encode_header, encode_series, file_bytes, printable
from swtrace.trace.identity import RankIdentity, SeriesInfo, Workload
from swtrace.trace.request_link import RequestLink
from swtrace.trace.ring_file import is_hidden, is_removed, publish
from swtrace.trace.schema import DEFAULT_RECORDS
from swtrace.version import __version__

logger = logging.getLogger(__name__)

RENEW_NS = 10_000_000_000
"""How often a step renews the clock anchor and the file's modification time, which gives a dead ring's age, and checks
that the file still exists."""

STORES_IN_ORDER = platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}
"""Whether other processes see this machine's stores in program order, so that records need no check word."""

_U16 = 0xFFFF
_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF
_HEADER_BYTES = schema.HEADER_BYTES
_SEQUENCE_WORD = schema.SEQUENCE_WORD
_INSTANT_MASK = schema.INSTANT_MASK
_GENERATION_ONE = schema.GENERATION_ONE
_POSITION_SHIFT = schema.POSITION_SHIFT
_TRANSFER = int(schema.Kind.TRANSFER)
_STEP = int(schema.Kind.STEP)
_STEP_FIELDS = [(field.name, (1 << 8 * int(field.dtype[-1])) - 1) for field in schema.STEP_FIELDS]
"""Name and largest value of each."""
_LAUNCH = int(schema.Kind.LAUNCH)
_REQUEST = int(schema.Kind.REQUEST)


class RecorderStatistics(NamedTuple):
    """Counters of a recorder."""

    written: int
    """Records committed."""
    series: int


def identity_of_this_process(run_id: str, rank: int, model: str = "") -> RankIdentity:
    """Return the identity of this process as the writer of a new ring."""
    return RankIdentity(
        run_id=run_id,
        rank=rank,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        start_time_ns=time.time_ns(),
        model=model,
        version=__version__,
        clock_offset=clock_offset(),
        workload=Workload.from_environment(os.environ),
    )


class Recorder:
    """The writer of one rank's ring. Use :meth:`create` to get one."""

    def __init__(
        self,
        path: Path,
        identity: RankIdentity,
        descriptor: int,
        mapping: mmap.mmap,
        *,
        checked: bool,
        keep_s: float = DEFAULT_KEEP_S,
    ) -> None:
        """Wrap a finished ring. Use :meth:`create` instead."""
        self.path = path
        self.identity = identity
        self.checked = checked
        self._keep_s = keep_s
        self._lost = False
        """The file was removed and could not be recreated, and the log says so."""
        self._descriptor = descriptor
        self._capacity = (len(mapping) - _HEADER_BYTES) // schema.RECORD_BYTES
        self._cursor = _Cursor(self._capacity - 1)
        self._mapping = mapping
        self._words = memoryview(mapping).cast("Q")
        self._series: list[SeriesRecorder] = []
        self._windows_reserved = 0
        self._renew_at_ns = now_ns() + RENEW_NS

    @classmethod
    def create(
        cls,
        directory: Path,
        identity: RankIdentity,
        *,
        records: int = DEFAULT_RECORDS,
        keep_s: float = DEFAULT_KEEP_S,
        checked: bool = not STORES_IN_ORDER,
    ) -> Recorder:
        """Create this rank's ring in ``directory`` and return its recorder.

        Also remove rings there whose writers died more than ``keep_s`` seconds ago. If there is still no room, remove
        younger dead rings of this user.

        Args:
            directory: Created for this user alone if it is missing. If it has the set-group-ID bit, its group can read
                the rings. Nobody else can in either case.
            identity: The writer. Characters that a terminal cannot show are replaced.
            records: Capacity, rounded up to a power of two.
            keep_s: How long the rings of dead ranks are kept, in seconds.
            checked: Give every record a check word. Needed where stores can be seen out of order.

        Raises:
            RingCreateError: ``records`` is out of range, the folder or file cannot be created, or there is no room.
        """
        if not 1 <= records <= schema.MAX_RECORDS:
            raise RingCreateError(
                f"cannot make a ring of {records} records: SWTRACE_RING_RECORDS must be from 1 to {schema.MAX_RECORDS}"
            )
        capacity = max(schema.MIN_RECORDS, 1 << (records - 1).bit_length())
        path = directory.absolute() / ring_name(identity.run_id, identity.rank)

        def fill(mapping: mmap.mmap) -> None:
            anchor = ClockAnchor.take()
            header = RingHeader(capacity, anchor.monotonic_ns, anchor.realtime_ns, checked, identity)
            fixed, identity_json = encode_header(header)
            mapping[: len(fixed)] = fixed
            mapping[schema.IDENTITY_OFFSET : schema.IDENTITY_OFFSET + len(identity_json)] = identity_json
            schema.ANCHOR.pack_into(mapping, schema.ANCHOR_OFFSET, anchor.monotonic_ns, anchor.realtime_ns)

        size = file_bytes(capacity)
        try:
            descriptor, mapping = publish(path, size, fill, keep_s)
        except (OSError, RingFullError) as error:
            raise RingCreateError(
                f"cannot make a ring of {size} bytes in {path.parent}: {error}",
                f"SWTRACE_DIR sets the folder, SWTRACE_RING_RECORDS the size (currently {capacity} records)",
            ) from error
        recorder = cls(path, identity, descriptor, mapping, checked=checked, keep_s=keep_s)
        _live.add(recorder)
        return recorder

    def add_series(self, info: SeriesInfo) -> SeriesRecorder:
        """Enter a series in the ring's table, reserve its windows and return its recorder.

        A refused series is entered for readers only and reserves no windows. A later series with the same name, start
        layer and group gets a numbered name: ``o_proj:2``.

        Raises:
            RingFullError: there is no room for another series, its description or its windows.
            TraceError: the ring is closed.
        """
        entry, info = self.entry(info), self._distinct(info)
        index, first_window = len(self._series), self._windows_reserved
        windows = 0 if info.refused else info.window_count
        offset = schema.SERIES_TABLE_OFFSET + index * schema.SERIES_SLOT_BYTES
        self._mapping[offset : offset + len(entry)] = entry
        series = SeriesRecorder(self, info, index, first_window, windows)
        self._series.append(series)
        self._windows_reserved += windows
        self._words[schema.SERIES_COUNT_OFFSET // 8] = index + 1
        self._touch()
        return series

    def entry(self, info: SeriesInfo) -> bytes:
        """Return the entry that the ring's table would get for a series, without entering it.

        Raises:
            RingFullError: there is no room for another series, its description or its windows.
            TraceError: the ring is closed.
        """
        if self._descriptor < 0:
            raise TraceError(f"series {info.name!r}: ring {self.path} is closed")
        if len(self._series) >= schema.SERIES_SLOTS:
            raise RingFullError(f"series {info.name!r}: a ring has room for {schema.SERIES_SLOTS} series")
        windows = 0 if info.refused else info.window_count
        left = schema.WINDOW_SLOTS - self._windows_reserved
        if windows > left:
            raise RingFullError(f"series {info.name!r}: needs {windows} windows; the ring has {left} left")
        return encode_series(self._distinct(info), self._windows_reserved)

    def _distinct(self, info: SeriesInfo) -> SeriesInfo:
        """Return the series with a name that is unique in this ring for its start layer and group.

        All ranks of a group create their series in the same order, so they choose the same name.
        """
        if info.refused:
            return info
        place = info.start_layer, info.group_ranks
        shared = (series.info for series in self._series if not series.info.refused)
        taken = {other.name for other in shared if (other.start_layer, other.group_ranks) == place}
        name, number = printable(info.name), 1
        while name in taken:
            number += 1
            suffix = f":{number}"  # a colon has no meaning in a URL query, so it needs no escaping
            name = printable(info.name)[: MAX_TEXT - len(suffix)] + suffix
        return replace(info, name=name)

    def renew(self) -> None:
        """Restore the file if it was removed or is hidden, and renew the anchor. Due every :data:`RENEW_NS`."""
        self._restore()
        self.renew_anchor()

    def renew_anchor(self) -> None:
        """Store a new pair of the two host clocks."""
        anchor = ClockAnchor.take()
        word = schema.ANCHOR_OFFSET // 8
        self._words[word] = 0
        self._words[word + 1] = anchor.realtime_ns
        self._words[word] = anchor.monotonic_ns
        self._touch()
        self._renew_at_ns = now_ns() + RENEW_NS

    def statistics(self) -> RecorderStatistics:
        """Return the counters so far."""
        return RecorderStatistics(self._cursor.sequence, len(self._series))

    def enter_collective(self, kind: int) -> bool:
        """Mark that this rank is in a collective that no series issued; False if it is in one already."""
        words, word = self._words, schema.COLLECTIVE_OFFSET // 8
        if words[word]:
            return False
        words[word + 1] = now_ns()
        words[word] = kind
        return True

    def leave_collective(self) -> None:
        """Remove the mark of :meth:`enter_collective`: the rank goes on from now."""
        words, word = self._words, schema.COLLECTIVE_OFFSET // 8
        words[word + 1] = now_ns()
        words[word] = 0

    def announce_close(self) -> None:
        """Mark the ring as closed but keep writing, so that a later kill of this process counts as a planned end."""
        if self._descriptor >= 0:
            self._words[schema.CLOSED_OFFSET // 8] = now_ns()

    def close(self) -> None:
        """Mark the ring as closed and release its lock. Its records stay readable; later events are discarded."""
        if self._descriptor < 0:
            return
        self.announce_close()
        self._touch()
        self._detach()

    def _restore(self) -> None:
        """Recreate a file that was removed, for example by a temporary-file cleaner or systemd's RemoveIPC.

        Also recreate one that was made before its folder was shared, so that the folder's group can read it. Readers of
        the old file continue in the copy (``RingReader.alive``) at their next record. Later readers find it
        by its name. Call this only between records.
        """
        if self._descriptor < 0:
            return
        if is_removed(self.path, self._descriptor):
            why = "was removed"
        elif is_hidden(self.path, self._descriptor):
            why = "is older than the sharing of its folder with a group"
        else:
            return
        old, words = self._mapping, self._words
        try:
            descriptor, mapping = publish(self.path, len(old), lambda new: _copy(old, new), self._keep_s)
        except OSError as error:
            if not self._lost:
                self._lost = True
                logger.warning(
                    "swtrace: rank %d: its ring %s %s and cannot be recreated: %s. Readers started from now "
                    "on will not see this rank",
                    self.identity.rank,
                    self.path,
                    why,
                    error,
                )
            return
        self._lost = False
        logger.warning("swtrace: rank %d: recreated its ring %s, which %s", self.identity.rank, self.path, why)
        # Mark the old file as closed: its lock is released next, and its readers must not take the writer for dead.
        words[schema.CLOSED_OFFSET // 8] = now_ns()
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._attach(mapping)
        for series in self._series:
            series._copy_ready_stamps(words)  # noqa: SLF001 - see _attach

    def _attach(self, mapping: mmap.mmap) -> None:
        # The old mapping is unmapped with its last reference, because another thread may be in the middle of a store.
        self._mapping = mapping
        self._words = memoryview(mapping).cast("Q")
        for series in self._series:
            series._attach(self)  # noqa: SLF001 - both classes share state, which saves indirections on the hot path

    def _detach(self) -> None:
        """Release the file. Later calls, such as a transport's late callback, write into anonymous memory."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._renew_at_ns = 1 << 63
        # Untouched pages of an anonymous mapping cost nothing.
        self._attach(mmap.mmap(-1, len(self._mapping)))

    def _touch(self) -> None:
        """Update the file's modification time, because stores through a mapping of tmpfs do not."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.utime(self._descriptor)


class SeriesRecorder:
    """The hot path of one series. Writes its events directly into the ring."""

    __slots__ = (
        "_checked",
        "_cursor",
        "_in_use_at",
        "_issued_at",
        "_mapping",
        "_mask",
        "_occupant_at",
        "_pack_transfer",
        "_position_bits",
        "_progress_at",
        "_ready_at",
        "_recorder",
        "_sequences",
        "_since_at",
        "_stage",
        "_tokens",
        "_words",
        "index",
        "info",
    )

    def __init__(self, recorder: Recorder, info: SeriesInfo, index: int, first_window: int, windows: int) -> None:
        """Prepare everything that a record needs. Use :meth:`Recorder.add_series` instead."""
        self.info = info
        self.index = index
        self._recorder = recorder
        self._cursor = recorder._cursor  # noqa: SLF001 - see Recorder._attach
        self._mask = self._cursor.mask
        self._checked = recorder.checked
        self._pack_transfer = schema.TRANSFER_RECORD.pack_into
        base = schema.WINDOW_TABLE_OFFSET // 8 + first_window * schema.WINDOW_WORDS
        entries = range(base, base + windows * schema.WINDOW_WORDS, schema.WINDOW_WORDS)
        self._occupant_at = tuple(word + schema.WINDOW_OCCUPANT for word in entries)
        self._issued_at = tuple(word + schema.WINDOW_ISSUED for word in entries)
        self._ready_at = tuple(word + schema.WINDOW_READY for word in entries)
        self._in_use_at = tuple(word + schema.WINDOW_IN_USE for word in entries)
        self._tokens = [count(_GENERATION_ONE, _GENERATION_ONE) for _ in range(windows)]
        self._position_bits = tuple(position << _POSITION_SHIFT for position in range(info.num_layers))
        self._progress_at = schema.PROGRESS_OFFSET // 8 + index * schema.PROGRESS_WORDS
        self._since_at = self._progress_at + schema.PROGRESS_SINCE
        self._stage = 0
        self._attach(recorder)

    def _attach(self, recorder: Recorder) -> None:
        self._mapping = recorder._mapping  # noqa: SLF001 - see Recorder._attach
        self._words = recorder._words  # noqa: SLF001 - see Recorder._attach
        # The sequence number of each slot.
        self._sequences = self._words[_HEADER_BYTES // 8 + _SEQUENCE_WORD :: schema.RECORD_WORDS]

    def _copy_ready_stamps(self, old: memoryview) -> None:
        """Copy the ready stamps that another thread has stored in the old file since it was copied."""
        words = self._words
        for ready_at, occupant_at in zip(self._ready_at, self._occupant_at, strict=True):
            stamp = old[ready_at]
            if stamp != words[ready_at] and stamp >> schema.GENERATION_SHIFT == (
                words[occupant_at] >> schema.GENERATION_SHIFT
            ):
                words[ready_at] = stamp

    def window_issued(self, window: int, step: int, position: int, issued_ns: int) -> int:
        """Record that a broadcast into a window was issued.

        Returns:
            The generation of the occupant, already shifted to its place. Pass it with the ready and in-use stamps.
        """
        token = next(self._tokens[window])
        words = self._words
        words[self._issued_at[window]] = issued_ns
        try:
            words[self._occupant_at[window]] = token | self._position_bits[position] | (step & _U32)
        except ValueError:  # more than 64 bits: start again with generation 1
            self._tokens[window] = count(_GENERATION_ONE, _GENERATION_ONE)
            return self.window_issued(window, step, position, issued_ns)
        return token

    def window_ready(self, window: int, generation: int, ready_ns: int) -> None:
        """Stamp the instant at which a window's broadcast completed: one 8-byte store, safe from any thread."""
        self._words[self._ready_at[window]] = ready_ns & _INSTANT_MASK | generation

    def window_in_use(self, window: int, generation: int, wait_end_ns: int) -> None:
        """Stamp the instant from which a window's weight is in use."""
        self._words[self._in_use_at[window]] = wait_end_ns & _INSTANT_MASK | generation

    def window_freed(self, window: int) -> None:
        """Mark a window as free."""
        self._words[self._occupant_at[window]] = 0

    def issued(self, operations: int, at_ns: int) -> None:
        """Mark how many broadcasts this rank has issued."""
        words = self._words
        words[self._since_at] = at_ns
        words[self._progress_at] = operations | self._stage

    def enter_stage(self, stage: int, at_ns: int) -> None:
        """Mark that a step begins or ends; see :class:`~swtrace.trace.schema.Stage`."""
        self._stage = stage << schema.STAGE_SHIFT
        self.issued(self._words[self._progress_at] & schema.ISSUED_MASK, at_ns)

    def block(self, position: int, at_ns: int) -> None:
        """Mark that the host is blocked until the broadcast of a layer is complete."""
        self._words[self._progress_at + schema.PROGRESS_WAITING] = (
            at_ns & _INSTANT_MASK | position << schema.GENERATION_SHIFT
        )

    def unblock(self, at_ns: int) -> None:
        """Remove the mark of :meth:`block`: the rank goes on from now."""
        self._words[self._since_at] = at_ns
        self._words[self._progress_at + schema.PROGRESS_WAITING] = 0

    def completed(self, steps: int, at_ns: int) -> None:
        """Mark how many steps the device is known to have completed. Safe from any one thread."""
        words, word = self._words, self._progress_at
        words[word + schema.PROGRESS_COMPLETED_AT] = at_ns
        words[word + schema.PROGRESS_COMPLETED] = steps

    def close(self) -> None:
        """Mark the series as closed. Its rank may go on with other series."""
        self._words[schema.SERIES_CLOSED_OFFSET // 8] |= 1 << self.index

    def transfer(
        self,
        issued_ns: int,
        ready_ns: int,
        wait_begin_ns: int,
        wait_end_ns: int,
        step: int,
        operation: int,
        position: int,
        reach_position: int,
        source: int,
        window: int,
        observed: int,
        flags: int,
        clock: int = 0,
    ) -> None:
        """Record one layer's transfer and the wait for it. Numbers too large for their field wrap around."""
        self.write_transfer(
            issued_ns, ready_ns, wait_begin_ns, wait_end_ns, step, operation, position, reach_position, source, window,
            self.pack_attributes(observed, clock, flags), 0,
        )  # fmt: skip

    def pack_attributes(self, observed: int, clock: int, flags: int, kind: int = _TRANSFER) -> int:
        """Return these values packed, as :meth:`write_transfer` takes them. Callers compute it in advance."""
        return kind | self.index << 8 | (observed & 15) << 16 | (clock & 15) << 20 | (flags & 255) << 24

    def write_transfer(
        self,
        issued_ns: int,
        ready_ns: int,
        wait_begin_ns: int,
        wait_end_ns: int,
        step: int,
        operation: int,
        position: int,
        reach_position: int,
        source: int,
        window: int,
        attributes: int,
        generation: int,
    ) -> None:
        """Do the work of :meth:`transfer` and, if the generation is not 0, of :meth:`window_in_use` in one call."""
        if generation:
            self._words[self._in_use_at[window]] = wait_end_ns & _INSTANT_MASK | generation
        cursor = self._cursor
        sequence = cursor.sequence + 1
        slot = sequence & self._mask
        self._sequences[slot] = 0
        try:
            if self._checked:
                schema.CHECKED_TRANSFER_RECORD.pack_into(
                    self._mapping, (slot << 6) + _HEADER_BYTES,
                    issued_ns, ready_ns, wait_begin_ns, wait_end_ns,
                    step, operation, position, reach_position, source, window, attributes,
                    schema.check_word(
                        issued_ns, ready_ns, wait_begin_ns, wait_end_ns, step | operation << 32,
                        position | reach_position << 16 | source << 32 | window << 48, attributes, sequence,
                    ),
                    sequence,
                )  # fmt: skip
            else:
                self._pack_transfer(
                    self._mapping, (slot << 6) + _HEADER_BYTES,
                    issued_ns, ready_ns, wait_begin_ns, wait_end_ns,
                    step, operation, position, reach_position, source, window, attributes, sequence,
                )  # fmt: skip
        except struct.error:
            # A number outgrew its field; u32 operation numbers do so after two weeks.
            self.write_transfer(
                issued_ns & _U64, ready_ns & _U64, wait_begin_ns & _U64, wait_end_ns & _U64,
                step & _U32, operation & _U32, position & _U16, reach_position & _U16, source & _U16, window & _U16,
                attributes, 0,
            )  # fmt: skip
            return
        cursor.sequence = sequence

    def launch(self, issue_ns: int, wait_ns: int, step: int, operation: int, position: int, source: int) -> None:
        """Record when the host launched a transfer's issue and the wait for it, in CLOCK_MONOTONIC."""
        attributes = self.pack_attributes(0, 0, 0, _LAUNCH)
        self.write_transfer(
            issue_ns, 0, wait_ns, 0, step, operation, position, 0, source, schema.NO_WINDOW, attributes, 0
        )

    def step(self, *, flags: int = 0, clock: int = 0, **fields: int) -> None:
        """Record one forward pass. Call this after all its transfers have been recorded.

        Args:
            flags: :class:`~swtrace.trace.schema.StepFlag`.
            clock: The clock that its instants were read from.
            fields: Values of :data:`~swtrace.trace.schema.STEP_FIELDS`; those not given are 0. Numbers too large for
                their field wrap around. An ``untimed`` step has no transfers, and on a device no instants.

        Raises:
            TypeError: a field has an unknown name.
        """
        values = [fields.pop(name, 0) & most for name, most in _STEP_FIELDS]
        if fields:
            raise TypeError(f"a STEP record has no field {', '.join(fields)}")
        self._write(schema.STEP_RECORD, schema.STEP_BODY, values, _STEP, (clock & 15) << 4, flags & 255)

    def request(self, at_ns: int, link: RequestLink, step: int, index: int) -> None:
        """Record a traced request in a step's batch. Call this before the step is recorded.

        Args:
            at_ns: When the forward began.
            link: The request's trace context.
            step: Number of the step.
            index: Number of the request among those recorded for the step.
        """
        trace_id, span_id = link
        values = [at_ns, trace_id >> 64, trace_id & _U64, span_id, step & _U32, index, 0]
        self._write(schema.REQUEST_RECORD, schema.REQUEST_BODY, values, _REQUEST, 0, 0)

    def _write(
        self, record: struct.Struct, body: struct.Struct, values: Sequence[int], kind: int, clock: int, flags: int
    ) -> None:
        cursor = self._cursor
        sequence = cursor.sequence + 1
        slot = sequence & self._mask
        self._sequences[slot] = 0
        check = 0
        if self._checked:
            words = schema.BODY.unpack(body.pack(*values))
            check = schema.check_word(*words, kind | self.index << 8 | clock << 16 | flags << 24, sequence)
        record.pack_into(
            self._mapping, (slot << 6) + _HEADER_BYTES, *values, kind, self.index, clock, flags, check, sequence
        )
        cursor.sequence = sequence
        if now_ns() >= self._recorder._renew_at_ns:  # noqa: SLF001 - see Recorder._attach
            self._recorder.renew()


class _Cursor:
    """The newest committed record of a ring, shared by its series."""

    __slots__ = ("mask", "sequence")

    def __init__(self, mask: int) -> None:
        self.mask = mask
        self.sequence = 0


def _copy(old: mmap.mmap, new: mmap.mmap) -> None:
    with memoryview(old) as source, memoryview(new) as target:
        target[:] = source


def _forget_in_child() -> None:
    """Detach the parent's rings in a forked child: a ring has one writer, and its lock must end with the parent."""
    for recorder in list(_live):
        recorder._detach()  # noqa: SLF001 - same module


_live: weakref.WeakSet[Recorder] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)
