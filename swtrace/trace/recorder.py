"""The writing side of a ring: one recorder per rank process, its only writer.

What holds at every instant, also if the process is killed there:

- the file has its final name only when it is complete, and the writer's lock was taken before;
- a slot's sequence number is 0 from before its first changed byte until after its last, so a
  record is either committed whole or not there;
- the series table's count is stored after the entry it counts;
- a window's occupant is stored after its issued instant; ready and in-use instants carry the
  occupant's generation, so that a late one is ignored.

All methods but :meth:`SeriesRecorder.window_ready` belong to one thread at a time, the one that runs
the forward. Nothing on the hot path allocates more than integers, takes a lock or makes a system call.

The lock's file descriptor is not the one that is mapped: neither a mapping that a forked child
inherits nor one that outlives :meth:`Recorder.close` keeps a dead rank looking alive.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import platform
import socket
import stat
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from swtrace.errors import RingCreateError, RingFullError, TraceError
from swtrace.trace import schema
from swtrace.trace.clocks import ClockAnchor, boot_id, clock_offset, now_ns
from swtrace.trace.directory import (
    DEFAULT_KEEP_S,
    PREFIX,
    UNFINISHED_PREFIX,
    DeadRing,
    remove_expired,
    remove_for_room,
    ring_name,
)
from swtrace.trace.header import MAX_TEXT, RingHeader, encode_header, encode_series, file_bytes, printable
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.schema import DEFAULT_RECORDS
from swtrace.version import __version__

logger = logging.getLogger(__name__)

RENEW_NS = 10_000_000_000
"""How often a step renews the clock anchor and the file's time stamp, by which dead rings age, and sees whether the
file is still there."""

STORES_IN_ORDER = platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}
"""Other processes see this machine's stores in program order; records need no check word."""

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
"""Name and highest number of each."""
_LAUNCH = int(schema.Kind.LAUNCH)


class RecorderStatistics(NamedTuple):
    """What a recorder has done."""

    written: int
    """Records committed."""
    series: int


def identity_of_this_process(run_id: str, rank: int, model: str = "") -> RankIdentity:
    """Return who writes a ring that this process makes now."""
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
    )


class Recorder:
    """One rank's ring. Make it with :meth:`create`."""

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
        """Wrap a finished ring; :meth:`create` is the way to get one."""
        self.path = path
        self.identity = identity
        self.checked = checked
        self._keep_s = keep_s
        self._lost = False
        """The file was removed, could not be made anew, and that was said."""
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
        """Make this rank's ring in ``directory`` and return its recorder.

        Also removes rings there whose writers died more than ``keep_s`` seconds ago, and younger ones of this user
        where there is no room without that.

        Args:
            directory: Made for this user alone if it is missing. One with the set-group-ID bit is shared with its
                group, on purpose: rings there are readable by that group, and by nobody else either way.
            identity: Who writes; text that a terminal cannot show is replaced.
            records: Capacity; rounded up to a power of two.
            keep_s: How long the rings of dead ranks stay, in seconds.
            checked: Give every record a check word: needed where stores are seen out of order.

        Raises:
            RingCreateError: the folder or file cannot be made, or there is no room for it.
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
            descriptor, mapping = _publish(path, size, fill, keep_s)
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

        A refused series is only told to readers: it reserves no windows. A later series of the same name, start layer
        and group gets a name of its own: ``o_proj:2``.

        Raises:
            RingFullError: no room for another series, or for its windows.
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
        """Return a series as the ring's table would hold it, without entering it.

        Raises:
            RingFullError: no room for another series, or for its windows.
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
        """Return the series under a name that no earlier one of its start layer and group has in this ring.

        A group's ranks make their series in the same order, so they all choose the same name.
        """
        if info.refused:
            return info
        place = info.start_layer, info.group_ranks
        shared = (series.info for series in self._series if not series.info.refused)
        taken = {other.name for other in shared if (other.start_layer, other.group_ranks) == place}
        name, number = printable(info.name), 1
        while name in taken:
            number += 1
            suffix = f":{number}"  # means nothing in a URL, so that it need not be escaped in queries
            name = printable(info.name)[: MAX_TEXT - len(suffix)] + suffix
        return replace(info, name=name)

    def renew(self) -> None:
        """Do what is due every :data:`RENEW_NS`: see that the file is still there, and renew the anchor."""
        self._restore_if_removed()
        self.renew_anchor()

    def renew_anchor(self) -> None:
        """Store a fresh pair of both host clocks."""
        anchor = ClockAnchor.take()
        word = schema.ANCHOR_OFFSET // 8
        self._words[word] = 0
        self._words[word + 1] = anchor.realtime_ns
        self._words[word] = anchor.monotonic_ns
        self._touch()
        self._renew_at_ns = now_ns() + RENEW_NS

    def statistics(self) -> RecorderStatistics:
        """Return what was recorded so far."""
        return RecorderStatistics(self._cursor.sequence, len(self._series))

    def announce_close(self) -> None:
        """Mark the ring as closed, and go on: whatever kills this process from now on, its end was planned."""
        if self._descriptor >= 0:
            self._words[schema.CLOSED_OFFSET // 8] = now_ns()

    def close(self) -> None:
        """Mark the ring as closed and release its lock. Its records stay readable; later events go nowhere."""
        if self._descriptor < 0:
            return
        self.announce_close()
        self._touch()
        self._detach()

    def _restore_if_removed(self) -> None:
        """Put a whole copy where the file was removed (by a cleaner of temporary files, by systemd's RemoveIPC).

        Readers that hold the old file read on in the copy (``RingReader.alive``), from the record that they had come
        to; those that come later find it by its name. Must come between records.
        """
        if self._descriptor < 0 or not _removed(self.path, self._descriptor):
            return
        old, words = self._mapping, self._words
        try:
            descriptor, mapping = _publish(self.path, len(old), lambda new: _copy(old, new), self._keep_s)
        except OSError as error:
            if not self._lost:
                self._lost = True
                logger.warning(
                    "swtrace: rank %d: its ring %s was removed and cannot be recreated: %s. Readers started from now on "
                    "will not see this rank",
                    self.identity.rank,
                    self.path,
                    error,
                )
            return
        self._lost = False
        logger.warning(
            "swtrace: rank %d: its ring %s was removed and has been recreated", self.identity.rank, self.path
        )
        # Whoever watches the lock of the old file learns that nobody died.
        words[schema.CLOSED_OFFSET // 8] = now_ns()
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._attach(mapping)
        for series in self._series:
            series._take_over_stamps(words)  # noqa: SLF001 - see _attach

    def _attach(self, mapping: mmap.mmap) -> None:
        # The old one is unmapped with its last reference: another thread may be in the middle of a store.
        self._mapping = mapping
        self._words = memoryview(mapping).cast("Q")
        for series in self._series:
            series._attach(self)  # noqa: SLF001 - one thing in two classes: the hot path wants few indirections

    def _detach(self) -> None:
        """Let go of the file. What still calls in (a transport's late callback) writes into memory of nobody's."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._renew_at_ns = 1 << 63
        # Untouched pages of an anonymous mapping cost nothing.
        self._attach(mmap.mmap(-1, len(self._mapping)))

    def _touch(self) -> None:
        """Set the file's time stamp: stores through a mapping of tmpfs do not."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.utime(self._descriptor)


class SeriesRecorder:
    """The hot path of one series: its events, straight into the ring."""

    __slots__ = (
        "_checked",
        "_cursor",
        "_in_use_at",
        "_issued_at",
        "_mapping",
        "_mask",
        "_occupant_at",
        "_pack_step",
        "_pack_transfer",
        "_position_bits",
        "_ready_at",
        "_recorder",
        "_sequences",
        "_tokens",
        "_words",
        "index",
        "info",
    )

    def __init__(self, recorder: Recorder, info: SeriesInfo, index: int, first_window: int, windows: int) -> None:
        """Prepare everything that a record needs; :meth:`Recorder.add_series` is the way to get one."""
        self.info = info
        self.index = index
        self._recorder = recorder
        self._cursor = recorder._cursor  # noqa: SLF001 - see Recorder._attach
        self._mask = self._cursor.mask
        self._checked = recorder.checked
        self._pack_transfer = schema.TRANSFER_RECORD.pack_into
        self._pack_step = schema.STEP_RECORD.pack_into
        base = schema.WINDOW_TABLE_OFFSET // 8 + first_window * schema.WINDOW_WORDS
        entries = range(base, base + windows * schema.WINDOW_WORDS, schema.WINDOW_WORDS)
        self._occupant_at = tuple(word + schema.WINDOW_OCCUPANT for word in entries)
        self._issued_at = tuple(word + schema.WINDOW_ISSUED for word in entries)
        self._ready_at = tuple(word + schema.WINDOW_READY for word in entries)
        self._in_use_at = tuple(word + schema.WINDOW_IN_USE for word in entries)
        self._tokens = [count(_GENERATION_ONE, _GENERATION_ONE) for _ in range(windows)]
        self._position_bits = tuple(position << _POSITION_SHIFT for position in range(info.num_layers))
        self._attach(recorder)

    def _attach(self, recorder: Recorder) -> None:
        self._mapping = recorder._mapping  # noqa: SLF001 - see Recorder._attach
        self._words = recorder._words  # noqa: SLF001 - see Recorder._attach
        # One item per slot: its sequence number.
        self._sequences = self._words[_HEADER_BYTES // 8 + _SEQUENCE_WORD :: schema.RECORD_WORDS]

    def _take_over_stamps(self, old: memoryview) -> None:
        """Store the ready stamps that another thread has put into the old file since it was copied."""
        words = self._words
        for ready_at, occupant_at in zip(self._ready_at, self._occupant_at, strict=True):
            stamp = old[ready_at]
            if stamp != words[ready_at] and stamp >> schema.GENERATION_SHIFT == (
                words[occupant_at] >> schema.GENERATION_SHIFT
            ):
                words[ready_at] = stamp

    def window_issued(self, window: int, step: int, position: int, issued_ns: int) -> int:
        """Enter the broadcast just issued into a window.

        Returns:
            The occupancy's token (its generation, in place): ready and in-use stamps are given with it.
        """
        token = next(self._tokens[window])
        words = self._words
        words[self._issued_at[window]] = issued_ns
        try:
            words[self._occupant_at[window]] = token | self._position_bits[position] | (step & _U32)
        except ValueError:  # more than 64 bits: generations begin again
            self._tokens[window] = count(_GENERATION_ONE, _GENERATION_ONE)
            return self.window_issued(window, step, position, issued_ns)
        return token

    def window_ready(self, window: int, generation: int, ready_ns: int) -> None:
        """Stamp the instant at which a window's broadcast completed. From any thread; one 8-byte store."""
        self._words[self._ready_at[window]] = ready_ns & _INSTANT_MASK | generation

    def window_in_use(self, window: int, generation: int, wait_end_ns: int) -> None:
        """Stamp the instant from which a window's weight is read."""
        self._words[self._in_use_at[window]] = wait_end_ns & _INSTANT_MASK | generation

    def window_freed(self, window: int) -> None:
        """Mark a window as empty."""
        self._words[self._occupant_at[window]] = 0

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
        """Record one layer's transfer and the wait for it. Numbers too wide for their field wrap."""
        self.delivered(
            issued_ns, ready_ns, wait_begin_ns, wait_end_ns, step, operation, position, reach_position, source, window,
            self.how(observed, clock, flags), 0,
        )  # fmt: skip

    def how(self, observed: int, clock: int, flags: int, kind: int = _TRANSFER) -> int:
        """Return what :meth:`delivered` wants to know so, which a caller prepares."""
        return kind | self.index << 8 | (observed & 15) << 16 | (clock & 15) << 20 | (flags & 255) << 24

    def delivered(
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
        how: int,
        generation: int,
    ) -> None:
        """Do at once what :meth:`transfer` does and, if the generation is not 0, :meth:`window_in_use`."""
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
                    step, operation, position, reach_position, source, window, how,
                    schema.check_word(
                        issued_ns, ready_ns, wait_begin_ns, wait_end_ns, step | operation << 32,
                        position | reach_position << 16 | source << 32 | window << 48, how, sequence,
                    ),
                    sequence,
                )  # fmt: skip
            else:
                self._pack_transfer(
                    self._mapping, (slot << 6) + _HEADER_BYTES,
                    issued_ns, ready_ns, wait_begin_ns, wait_end_ns,
                    step, operation, position, reach_position, source, window, how, sequence,
                )  # fmt: skip
        except struct.error:
            # Only ever here when a number outgrew its field: u32 operation numbers do after two weeks.
            self.delivered(
                issued_ns & _U64, ready_ns & _U64, wait_begin_ns & _U64, wait_end_ns & _U64,
                step & _U32, operation & _U32, position & _U16, reach_position & _U16, source & _U16, window & _U16,
                how, 0,
            )  # fmt: skip
            return
        cursor.sequence = sequence

    def launch(self, issue_ns: int, wait_ns: int, step: int, operation: int, position: int, source: int) -> None:
        """Record when the host launched a transfer's issue and the wait for it, CLOCK_MONOTONIC."""
        how = self.how(0, 0, 0, _LAUNCH)
        self.delivered(issue_ns, 0, wait_ns, 0, step, operation, position, 0, source, schema.NO_WINDOW, how, 0)

    def step(self, *, flags: int = 0, clock: int = 0, **fields: int) -> None:
        """Record one forward pass, after all its transfers.

        Args:
            flags: :class:`~swtrace.trace.schema.StepFlag`.
            clock: That its instants were read from.
            fields: Of :data:`~swtrace.trace.schema.STEP_FIELDS`; those left out are 0. Numbers too wide for their
                field wrap. With a reason why it is ``untimed``, it has no transfers, and on a device no instants.

        Raises:
            TypeError: there is no such field.
        """
        values = [fields.pop(name, 0) & most for name, most in _STEP_FIELDS]
        if fields:
            raise TypeError(f"a STEP record has no field {', '.join(fields)}")
        cursor = self._cursor
        sequence = cursor.sequence + 1
        slot = sequence & self._mask
        self._sequences[slot] = 0
        clock, flags = (clock & 15) << 4, flags & 255
        check = 0
        if self._checked:
            body = schema.BODY.unpack(schema.STEP_BODY.pack(*values))
            check = schema.check_word(*body, _STEP | self.index << 8 | clock << 16 | flags << 24, sequence)
        self._pack_step(
            self._mapping, (slot << 6) + _HEADER_BYTES, *values, _STEP, self.index, clock, flags, check, sequence
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


def _publish(path: Path, size: int, fill: Callable[[mmap.mmap], None], keep_s: float) -> tuple[int, mmap.mmap]:
    """Make a ring's file and return its locked descriptor and its mapping: it gets its name when it is whole.

    Dead rings past their time are removed before, and this user's oldest ones as long as there is no room.
    """
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _say_removed(directory, remove_expired(directory, keep_s))
    while True:
        try:
            return _make(path, size, fill)
        except OSError as error:
            removed = remove_for_room(directory, size) if error.errno in _NO_ROOM else None
            if removed is None:
                raise
            _say_removed(directory, (removed,))


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _say_removed(directory: Path, removed: Sequence[DeadRing]) -> None:
    if removed:
        logger.warning(
            "swtrace: removed rings of dead ranks from %s (older than SWTRACE_RING_KEEP, or to make room), %d bytes: %s",
            directory,
            sum(ring.nbytes for ring in removed),
            ", ".join(ring.path.name for ring in removed),
        )


def _make(path: Path, size: int, fill: Callable[[mmap.mmap], None]) -> tuple[int, mmap.mmap]:
    unfinished = path.with_name(path.name.replace(PREFIX, UNFINISHED_PREFIX, 1))
    mode = 0o640 if path.parent.stat().st_mode & stat.S_ISGID else 0o600
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Room for the whole ring now, or an error now: a store into a page that tmpfs cannot provide is a SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
        mapping = _map(unfinished, size)
        fill(mapping)
        unfinished.rename(path)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            unfinished.unlink()
        raise
    return descriptor, mapping


def _map(path: Path, size: int) -> mmap.mmap:
    """Map a file through a descriptor of its own: a mapping keeps its open file alive, and that file's locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Faulted in now, not one page after the other on the hot path.
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)


def _removed(path: Path, descriptor: int) -> bool:
    """Return whether a file that is open under ``descriptor`` has lost its name. One that cannot be seen has not."""
    try:
        named = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_ino, named.st_dev) != (mine.st_ino, mine.st_dev)


def _copy(old: mmap.mmap, new: mmap.mmap) -> None:
    with memoryview(old) as source, memoryview(new) as target:
        target[:] = source


def _forget_in_child() -> None:
    """Leave the parent's rings alone in a forked child: its lock must die with the parent, its ring has one writer."""
    for recorder in list(_live):
        recorder._detach()  # noqa: SLF001 - this module is the class's own


_live: weakref.WeakSet[Recorder] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)
