"""The reading side of a ring: one cursor of one reader, that never disturbs the writer or other readers.

Delivery rule: a record is delivered only if it was known to be committed before its bytes were copied (its
own sequence number had been seen in its slot, or a later one in a later slot), and if its number stands in
the copy and in its slot afterwards. Each look is a system call of its own, so no copy can see them in
another order. On rings whose writer's machine reorders stores the check word must fit as well.

Accounting rule: every sequence number below the cursor was either delivered, lapped (overwritten
before it was read), damaged or skipped (left out because the reader was told to), and the newest
committed one is found by search, so that

    written == delivered + lapped + damaged + skipped + pending

holds exactly whenever :meth:`RingReader.statistics` is called.

The file is read with ``preadv`` and never mapped: a file that someone truncates gives a short read,
a mapping would give a SIGBUS. Nothing in a file makes a reader raise, once it is open, or allocate
more than the records asked for. A reader belongs to one thread at a time.

A dead writer's ring does not change any more. Once it is read to its end, :meth:`RingReader.release`
keeps what it says about its rank and closes the file: a reader of many dead rings holds no descriptor.
"""

from __future__ import annotations

import itertools
import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.closing import Closing
from swtrace.errors import RingFormatError
from swtrace.trace import records, schema
from swtrace.trace.clocks import ClockAnchor, now_ns
from swtrace.trace.directory import opened
from swtrace.trace.header import RingHeader, decode_header, decode_series, writer_lives
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.records import Records

_Words = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]

_CHUNK = 2048
"""Slots copied together: 128 KiB."""
_SCANNED = 64
"""So many slots are copied to look for the newest record, rather than one word after the other looked at."""
_RETRIES = 4
_MAX_SEQUENCE = 1 << 62
_SEQUENCE = schema.SEQUENCE_WORD
_FIRST_KIND, _LAST_KIND, _STEP = int(min(schema.Kind)), int(max(schema.Kind)), int(schema.Kind.STEP)
"""As mere numbers: NumPy takes ten times as long to compare with a member of an enumeration."""
_FIRST_SEQUENCE = schema.HEADER_BYTES + 8 * _SEQUENCE
"""Offset of the sequence number in slot 0."""
_PROBE_EVERY = 16


class Occupancy(StrEnum):
    """State of a window."""

    FREE = "free"
    INFLIGHT = "inflight"
    """Issued, not ready."""
    READY = "ready"
    """Ready, not yet waited for."""
    IN_USE = "in_use"
    """Waited for, not yet issued again."""


class WindowState(NamedTuple):
    """One window at one moment. Instants that have not come are 0."""

    window: int
    state: Occupancy
    step: int
    """Step that waits for the occupant, modulo 2**32."""
    position: int
    issued_ns: int
    ready_ns: int
    in_use_ns: int
    since_ns: int
    """When the window entered its state; 0 where that is not known."""


class RingStatistics(NamedTuple):
    """``written == delivered + lapped + damaged + skipped + pending``, exactly."""

    written: int
    """Records committed by the writer."""
    delivered: int
    lapped: int
    """Lost: overwritten before this reader came to them."""
    damaged: int
    """Lost: the file no longer holds what was committed, or held it damaged."""
    pending: int
    """Committed, not read yet."""
    skipped: int = 0
    """Left out by this reader's choice, see :meth:`RingReader.skip`: no loss."""

    @property
    def lost(self) -> int:
        """Records that this reader wanted and will never deliver."""
        return self.lapped + self.damaged


class _LastWords(NamedTuple):
    """What a dead writer's ring says about its rank."""

    closed: bool
    anchor: ClockAnchor
    statistics: RingStatistics
    windows: tuple[tuple[WindowState, ...], ...]
    """By series index."""


class RingReader(Closing):
    """One reader of one ring. Make it with :meth:`open`."""

    def __init__(self, path: Path, descriptor: int, header: RingHeader, fixed: bytes) -> None:
        """Wrap an open, checked file that begins with ``fixed``; :meth:`open` is the way to get one."""
        self.path = path
        self.header = header
        self.identity: RankIdentity = header.identity
        """Who writes the ring."""
        self.key = header.identity.key
        """The name under which readers know that rank."""
        self.series_damaged = 0
        """Entries of the series table that cannot be read: 0, or 1 while the first of them hides all later ones."""
        self.down_since_ns = 0
        """CLOCK_MONOTONIC at which this reader first saw the writer gone; 0 while it lives."""
        self._descriptor = descriptor
        self._file = _signature(os.fstat(descriptor))
        self._fixed = fixed
        self._last_words: _LastWords | None = None
        self._capacity = header.capacity
        self._mask = header.capacity - 1
        self._scratch: _Words = np.zeros((min(_CHUNK, header.capacity), schema.RECORD_WORDS), records.WORDS)
        self._pace = 1
        """Nearly so many records were new, the last time that there were any."""
        self._next = 1
        self._head = 0
        self._delivered = 0
        self._lapped = 0
        self._damaged = 0
        self._skipped = 0
        self._read_ns = 1
        """The last instant read, about."""
        self._series: list[SeriesInfo] = []
        self._first_windows: list[int] = []
        self._dead = False
        self._searched = False
        self._idle = 0

    @classmethod
    def open(cls, path: Path) -> RingReader:
        """Open a ring at its oldest record.

        Raises:
            RingFormatError: there is no sound ring at ``path``; the message says what is wrong.
        """
        try:
            with opened(path) as first:
                size = os.fstat(first).st_size
                data = os.pread(first, schema.SERIES_TABLE_OFFSET, 0)
                header = decode_header(data, size)
                descriptor = os.dup(first)
        except (OSError, RingFormatError) as error:
            raise RingFormatError(f"{path}: {error}") from error
        reader = cls(path, descriptor, header, data[: schema.HEADER.size])
        reader._find_head()  # what is in it can be told from the start
        return reader

    def release(self) -> RingStatistics:
        """Close a dead writer's file, and keep what it says about its rank. Nothing more is read from it.

        Raises:
            RingFormatError: the file was damaged meanwhile.
        """
        # Nobody writes there now: whatever changes later is another file, even where it gets the old inode.
        file = _signature(os.fstat(self._descriptor))
        series = range(len(self.series()))
        last_words = _LastWords(
            self.closed(), self.anchor(), self.statistics(), tuple(self.windows(index) for index in series)
        )
        if damage := self.damage():
            raise RingFormatError(damage)
        self._file, self._last_words = file, last_words
        self._scratch = np.zeros((0, schema.RECORD_WORDS), records.WORDS)
        self.close()
        return last_words.statistics

    @property
    def released(self) -> bool:
        """Whether everything is read and the file is closed."""
        return self._last_words is not None

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._descriptor

    def damage(self) -> str:
        """Return what became of an open ring's file that makes reading it senseless, empty if nothing did."""
        size = os.fstat(self._descriptor).st_size
        if size != self.header.file_bytes:
            return f"its size changed from {self.header.file_bytes} to {size} bytes while it was being read"
        if os.pread(self._descriptor, schema.HEADER.size, 0) != self._fixed:
            return "its header was overwritten while it was being read"
        return ""

    def close(self) -> None:
        """Let go of the file; idempotent. Only what :meth:`release` has kept can be asked for then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # What the ring says about its rank

    def alive(self) -> bool:
        """Return whether the writer holds its lock. A dead writer never comes back."""
        if not self._dead and not writer_lives(self._descriptor):
            self._dead = not self._follow()
            self.down_since_ns = now_ns() if self._dead else 0
        return not self._dead

    def _follow(self) -> bool:
        """Read on in the copy that a writer put where its file was removed; return whether there is one."""
        try:
            with opened(self.path) as copy:
                status = os.fstat(copy)
                if _signature(status)[:2] == self._file[:2]:
                    return False
                if decode_header(os.pread(copy, schema.SERIES_TABLE_OFFSET, 0), status.st_size) != self.header:
                    return False
                os.dup2(copy, self._descriptor, inheritable=False)
        except (OSError, RingFormatError):
            return False
        self._file = _signature(status)
        return True

    def closed(self) -> bool:
        """Return whether the writer closed the ring in good order."""
        return self._last_words.closed if self._last_words else self._word(schema.CLOSED_OFFSET) != 0

    def gone(self) -> bool:
        """Return whether the file has been removed from the folder, or replaced; of a released ring also: changed."""
        try:
            found = _signature(self.path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # The folder may not be looked into just now.
        return found != self._file if self._last_words else found[:2] != self._file[:2]

    def anchor(self) -> ClockAnchor:
        """Return the writer's newest pair of clocks."""
        if self._last_words:
            return self._last_words.anchor
        for _ in range(_RETRIES):
            pair = os.pread(self._descriptor, 16, schema.ANCHOR_OFFSET)
            if pair == os.pread(self._descriptor, 16, schema.ANCHOR_OFFSET) and any(pair[:8]):
                return ClockAnchor(int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little"))
        return ClockAnchor(self.header.epoch_ns, self.header.created_ns)

    def series(self) -> tuple[SeriesInfo, ...]:
        """Return the series entered so far, by index. A damaged entry ends the list for as long as it is damaged."""
        if self._descriptor < 0:
            return tuple(self._series)
        committed = min(self._word(schema.SERIES_COUNT_OFFSET), schema.SERIES_SLOTS)
        self.series_damaged = 0
        while len(self._series) < committed:
            offset = schema.SERIES_TABLE_OFFSET + len(self._series) * schema.SERIES_SLOT_BYTES
            try:
                info, first_window = decode_series(os.pread(self._descriptor, schema.SERIES_SLOT_BYTES, offset))
            except RingFormatError:
                self.series_damaged = 1
                break
            self._series.append(info)
            self._first_windows.append(first_window)
        return tuple(self._series)

    def windows(self, series: int) -> tuple[WindowState, ...]:
        """Return the state of every window of a series, each consistent in itself.

        Args:
            series: Index in :meth:`series`.
        """
        if not 0 <= series < len(self._series) and not 0 <= series < len(self.series()):
            return ()
        if self._last_words:
            return self._last_words.windows[series]
        info = self._series[series]
        count = 0 if info.refused else info.window_count
        offset = schema.WINDOW_TABLE_OFFSET + self._first_windows[series] * schema.WINDOW_BYTES
        table = self._table(offset, count)
        for _ in range(_RETRIES):
            again = self._table(offset, count)
            if again == table:
                break
            table = again
        words = np.frombuffer(table, records.WORDS).tolist()
        return tuple(_window_state(window, *words[4 * window : 4 * window + 4]) for window in range(count))

    # Records

    def read(self, limit: int = 65536) -> Records:
        """Return the next committed records in order, at most ``limit``; none if there are none now."""
        parts: list[Records] = []
        room, looked = limit, False
        while room > 0:
            if self.at_end:
                if looked and not self._dead:
                    break
                looked = True
            before = self._next
            batch = self._take(room)
            if batch is None:
                break
            if len(batch):
                parts.append(batch)
            # A jump over lapped records costs one: also a writer that laps this reader for ever is left at some time.
            room -= max(1, min(self._next - before, _CHUNK))
        if not parts:
            return records.empty()
        read = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._note_instant(read)
        return read

    @property
    def at_end(self) -> bool:
        """Whether everything was read that is known to be committed."""
        return self._head < self._next

    def skip(self, keep: int) -> int:
        """Leave out all but about the ``keep`` newest of the records committed now, and begin with a whole step.

        Returns:
            How many were left out: 0 if there are no more than that to be read.
        """
        head = self._find_head()
        self._forget_lapped(head)
        first = head - min(max(0, keep), self._capacity) + 1
        if first <= self._next:
            return 0
        first = self._after_step(first, head)
        left_out = first - self._next
        self._skipped += left_out
        self._next = first
        return left_out

    def next_ns(self) -> int:
        """Return the last instant of the next record, 0 if it is not at hand: tells which ring to read first.

        A step without instants counts as of the last instant that was read before it.
        """
        return self._instant(self._next)

    def _instant(self, sequence: int) -> int:
        slot = schema.HEADER_BYTES + ((sequence & self._mask) << 6)
        words = os.pread(self._descriptor, schema.RECORD_BYTES, slot)
        if len(words) < schema.RECORD_BYTES:
            return 0
        word: tuple[int, ...] = schema.RECORD.unpack(words)
        if word[_SEQUENCE] != sequence:
            return 0
        # The fourth word of a step is not an instant.
        last_ns = max(word[:3] if words[8 * schema.CHECK_WORD] == _STEP else word[:4])
        return last_ns or self._read_ns

    def lag_ns(self) -> int:
        """Return how much later the newest record that is known of was written than the last one read; 0: all is read.

        What is known of, :meth:`statistics` says.
        """
        if self._last_words or self.at_end:
            return 0
        return max(0, self._instant(self._head) - self._read_ns) if self._read_ns > 1 else 0

    def statistics(self, *, now: bool = True) -> RingStatistics:
        """Return the account of every record the writer has committed up to now.

        Args:
            now: False: up to when records were looked for last, which costs nothing.
        """
        if self._last_words:
            return self._last_words.statistics
        written = self._find_head() if now else self._known_head
        self._forget_lapped(written)
        pending = written - self._next + 1
        return RingStatistics(written, self._delivered, self._lapped, self._damaged, pending, self._skipped)

    def _note_instant(self, read: Records) -> None:
        instants = read.view(records.WORDS).reshape(-1, schema.RECORD_WORDS)[:, :3]
        # The last record has the last instant, give or take a step; if it has none at all, many may have none.
        self._read_ns = int(instants[-1].max()) or max(self._read_ns, int(instants.max()))

    def _after_step(self, first: int, head: int) -> int:
        """Return what follows the first STEP record from ``first`` on; ``first`` where none is near."""
        count = min(head - first + 1, len(self._scratch), self._capacity - (first & self._mask))
        expected = np.arange(first, first + count, dtype=records.WORDS)
        scratch = self._scratch[:count]
        self._read_slots(first, scratch)
        kinds = scratch.view(records.TRANSFER).reshape(-1)["kind"]
        steps = np.flatnonzero((kinds == _STEP) & (scratch[:, _SEQUENCE] == expected))
        return first + int(steps[0]) + 1 if len(steps) else first

    def _take(self, room: int) -> Records | None:
        """Deliver records of one run of slots; empty if all in it were lost, None if none is committed."""
        first = self._next
        if self.at_end:
            if not self._advance_head():
                return None
            if self._next != first:
                return records.empty()
        count = min(room, _CHUNK, self._head - first + 1, self._capacity - (first & self._mask))
        return self._collect(first, np.arange(first, first + count, dtype=records.WORDS))

    def _advance_head(self) -> bool:
        """Look for the writer's head, and jump to the oldest record that can still be there; return if there is one."""
        head = self._find_head()
        if head < self._next:
            self._idle += 1
            if self._searched or (not self._dead and self._idle % _PROBE_EVERY) or self.alive():
                return False
            # The writer's last words: whatever lies behind a damaged stretch is found by looking at every slot.
            self._searched = True
            head = self._search_all()
            if head < self._next:
                return False
        self._forget_lapped(head)
        return True

    def _forget_lapped(self, head: int) -> None:
        """Move the cursor to the oldest record that can still be there."""
        oldest = head - self._capacity + 1
        if oldest > self._next:
            self._lapped += oldest - self._next
            self._next = oldest

    def _collect(self, first: int, expected: _Words) -> Records:
        """Copy committed records, keep those that stood still, and account for each of the others."""
        count = len(expected)
        data: _Words = np.empty((count, schema.RECORD_WORDS), records.WORDS)
        for attempt in range(_RETRIES):
            self._read_slots(first, data)
            # The writer overwrites the oldest first: where the first slot stood still, all did.
            stood = data[:, _SEQUENCE] == expected
            sound = stood & self._sound(data)
            if sound.all() and self._sequence(first) == first:
                break
            after = self._sequences(first, count)
            stood &= after == expected
            sound &= stood
            # A slot that holds its number before and after, and yet not its bytes: stores seen out of order
            # give way to a second look, damage does not.
            if attempt == _RETRIES - 1 or bool(np.all(sound | (after != expected))):
                self._account(expected[~sound], after[~sound])
                break
        self._next = first + count
        kept = data if sound.all() else data[sound]
        self._delivered += len(kept)
        return kept.view(records.TRANSFER).reshape(-1)

    def _account(self, expected: _Words, found: _Words) -> None:
        """Count committed records that cannot be delivered, by what stands in their slots now."""
        lapped = 0
        for sequence, stood_there in zip(expected.tolist(), found.tolist(), strict=True):
            # A slot seen at 0 was just being written: by now it tells, unless the writer stands still or died in it,
            # and then the head does.
            now = stood_there or self._sequence(sequence)
            if now == 0:
                lapped += sequence + self._capacity <= self._find_head() + 1
            else:
                lapped += sequence < now <= _MAX_SEQUENCE and (now - sequence) & self._mask == 0
        self._lapped += lapped
        self._damaged += len(expected) - lapped

    def _sound(self, data: _Words) -> _Mask:
        batch = data.view(records.TRANSFER).reshape(-1)
        kinds = batch["kind"]
        sound: _Mask = (kinds >= _FIRST_KIND) & (kinds <= _LAST_KIND)
        return sound & records.checks_hold(batch) if self.header.checked else sound

    # Finding the newest committed record

    @property
    def _known_head(self) -> int:
        return max(self._head, self._next - 1)

    def _find_head(self) -> int:
        """Return the newest committed sequence number.

        It is looked for one further, then nearly where it should be at the pace of the last time, then further and
        further away from there; at last between two places.
        """
        known = low = self._known_head
        high = _MAX_SEQUENCE
        for step in itertools.chain((1, self._pace), (_SCANNED << doubled for doubled in itertools.count())):
            if low + step >= high:
                break
            if at := self._committed_at(low + step):
                low = max(low + step, at)
                high = max(high, low + 1)
            else:
                high = low + step
        while high - low > _SCANNED:
            middle = (low + high) // 2
            if at := self._committed_at(middle):
                low = max(middle, at)
            else:
                high = middle
        if high - low > 1:
            low = self._scan(low, high - low - 1)
        if low > known:
            self._pace = max(1, (low - known) * 7 // 8)
        self._head = low
        return low

    def _committed_at(self, sequence: int) -> int:
        """Return a committed sequence number that proves that ``sequence`` has been committed, 0 if there is none."""
        found = self._sequence(sequence)
        if found == 0:
            # Never written; or the writer is (or died) at work here on a later lap: then its neighbour tells.
            sequence += 1
            found = self._sequence(sequence)
        plausible = sequence <= found <= _MAX_SEQUENCE and found & self._mask == sequence & self._mask
        return found if plausible else 0

    def _scan(self, low: int, count: int) -> int:
        """Return the newest committed sequence number from ``low`` on, among as many slots behind it."""
        first = low + 1
        before_wrap = min(count, self._capacity - (first & self._mask))
        expected = np.arange(first, first + before_wrap, dtype=records.WORDS)
        found = self._sequences(first, before_wrap)
        # Commits are in order: whatever comes before one that is there has been committed, too.
        committed = np.flatnonzero((found >= expected) & (((found ^ expected) & np.uint64(self._mask)) == 0))
        newest = min(int(found[committed[-1]]), _MAX_SEQUENCE) if len(committed) else low
        if newest >= first + before_wrap - 1 and before_wrap < count:
            return self._scan(newest, count - before_wrap)
        return newest

    def _search_all(self) -> int:
        """Look at every slot for committed records ahead of the cursor, at most one lap away."""
        newest = self._known_head
        for start in range(0, self._capacity, len(self._scratch)):
            self._read_slots(start, self._scratch)
            found = self._scratch[:, _SEQUENCE]
            slots = np.arange(start, start + len(self._scratch), dtype=records.WORDS)
            ahead = (found >= np.uint64(self._next)) & (found < np.uint64(self._next + self._capacity))
            ahead &= (found & np.uint64(self._mask)) == slots
            ahead &= self._sound(self._scratch)
            if ahead.any():
                newest = max(newest, int(found[ahead].max()))
        self._head = newest
        return newest

    # Bytes

    def _word(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, offset), "little")

    def _sequence(self, sequence: int) -> int:
        """Return what stands now where ``sequence`` belongs."""
        return int.from_bytes(os.pread(self._descriptor, 8, _FIRST_SEQUENCE + ((sequence & self._mask) << 6)), "little")

    def _sequences(self, first: int, count: int) -> _Words:
        """Return what stands now where ``count`` sequence numbers from ``first`` belong; valid until the next call."""
        scratch = self._scratch[:count]
        self._read_slots(first, scratch)
        return scratch[:, _SEQUENCE]

    def _read_slots(self, first: int, into: _Words) -> None:
        """Copy slots; what the file no longer has reads as 0."""
        offset = schema.HEADER_BYTES + ((first & self._mask) << 6)
        whole = os.preadv(self._descriptor, [into.data], offset) // schema.RECORD_BYTES
        into[whole:] = 0

    def _table(self, offset: int, windows: int) -> bytes:
        table = os.pread(self._descriptor, windows * schema.WINDOW_BYTES, offset)
        return table.ljust(windows * schema.WINDOW_BYTES, b"\0")


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _window_state(window: int, occupant: int, issued_ns: int, ready: int, in_use: int) -> WindowState:
    generation = occupant >> schema.GENERATION_SHIFT
    step, position = occupant & 0xFFFFFFFF, (occupant >> schema.POSITION_SHIFT) & 0xFFFF
    if generation == 0:
        return WindowState(window, Occupancy.FREE, 0, 0, 0, 0, 0, 0)
    ready_ns = _instant(ready, generation, issued_ns)
    in_use_ns = _instant(in_use, generation, issued_ns)
    if 0 < in_use_ns < issued_ns or 0 < ready_ns < issued_ns:
        # The writer stands between storing the next issued instant and its occupant.
        return WindowState(window, Occupancy.FREE, 0, 0, 0, 0, 0, 0)
    state, since_ns = (
        (Occupancy.IN_USE, in_use_ns)
        if in_use_ns
        else (Occupancy.READY, ready_ns)
        if ready_ns
        else (Occupancy.INFLIGHT, issued_ns)
    )
    return WindowState(window, state, step, position, issued_ns, ready_ns, in_use_ns, since_ns)


def _instant(word: int, generation: int, issued_ns: int) -> int:
    """Complete a 48-bit instant from the issued one, which is less than a day and a half away; 0 if it is another's."""
    if word >> schema.GENERATION_SHIFT != generation:
        return 0
    ahead = (word - issued_ns) & schema.INSTANT_MASK
    return issued_ns + ahead - ((ahead >> (schema.GENERATION_SHIFT - 1)) << schema.GENERATION_SHIFT)
