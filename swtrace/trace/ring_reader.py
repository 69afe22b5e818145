"""Reads a ring with a cursor that never disturbs the writer or other readers.

Delivery rule: a reader delivers a record only if three things hold. The reader knew that the record was committed
before it copied the bytes. The copy holds the record's sequence number. The slot still holds that number afterwards.
A record is known to be committed once the reader has seen its number in its slot, or a later number in a later slot.
Each read is a separate system call, so the reads cannot take effect in another order. If the writer's machine
reorders stores, the check word must match too.

Accounting rule: every sequence number below the cursor was delivered, lapped (overwritten before it was
read), damaged or skipped (on request, or overwritten as history). The reader searches for the newest committed number.
Therefore

    written == delivered + lapped + damaged + skipped + pending

holds exactly whenever :meth:`RingReader.statistics` is called.

The file is read with ``preadv`` and never mapped, because a truncated file then gives a short read and not a
SIGBUS. Once a ring is open, no content of its file makes a reader raise. Nor does it make a reader allocate more
than the requested records need. A reader belongs to one thread at a time.

The ring of a dead writer no longer changes. Once it is read to its end, :meth:`RingReader.release` keeps the
facts about its rank and closes the file. So readers of dead rings hold no descriptors.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.closing import Closing
from swtrace.errors import RingFormatError
from swtrace.trace import records, schema
from swtrace.trace.clocks import ClockAnchor, now_ns
from swtrace.trace.directory import opened, ring_access_problem
from swtrace.trace.header import RingHeader, decode_header, decode_series, writer_lives
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.marks import MARKS_BYTES, Marks, WindowState, decode_marks, decode_windows
from swtrace.trace.records import Records

_Words = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]

_CHUNK = 2048
"""Slots copied together: 128 KiB."""
_SCANNED = 64
"""When the newest record is within this many slots, they are copied at once instead of probed one by one."""
_RETRIES = 4
_MAX_SEQUENCE = 1 << 62
_SEQUENCE = schema.SEQUENCE_WORD
_FIRST_KIND, _LAST_KIND, _STEP = int(min(schema.Kind)), int(max(schema.Kind)), int(schema.Kind.STEP)
"""Plain integers, because NumPy takes ten times as long to compare with a member of an enumeration."""
_INSTANTS = {_STEP: 3, int(schema.Kind.REQUEST): 1}
"""How many words at the beginning of a record are instants, where these are not four."""
_FIRST_SEQUENCE = schema.HEADER_BYTES + 8 * _SEQUENCE
"""Offset of the sequence number in slot 0."""
_PROBE_EVERY = 16
"""Reads without a new record between two checks that the writer is alive."""


class RingStatistics(NamedTuple):
    """Counts of records. ``written == delivered + lapped + damaged + skipped + pending`` holds exactly."""

    written: int
    """Records committed by the writer."""
    delivered: int
    lapped: int
    """Lost: overwritten before this reader read them."""
    damaged: int
    """Lost: committed, but missing from the file or damaged in it."""
    pending: int
    """Committed, not read yet."""
    skipped: int = 0
    """Not lost: skipped on request (:meth:`RingReader.skip`), or history that was overwritten before it was read
    (:meth:`RingReader.mark_history`)."""

    @property
    def lost(self) -> int:
        """Records that this reader should have delivered and never will."""
        return self.lapped + self.damaged


class _FinalState(NamedTuple):
    """What the ring of a dead writer says about its rank."""

    closed: bool
    anchor: ClockAnchor
    statistics: RingStatistics
    windows: tuple[tuple[WindowState, ...], ...]
    """By series index."""
    marks: Marks


class RingReader(Closing):
    """A reader of one ring. Use :meth:`open` to get one."""

    def __init__(self, path: Path, descriptor: int, header: RingHeader, fixed: bytes) -> None:
        """Wrap an open, checked file that begins with ``fixed``. Use :meth:`open` instead."""
        self.path = path
        self.header = header
        self.identity: RankIdentity = header.identity
        """The writer of the ring."""
        self.key = header.identity.key
        """The key under which readers know that rank."""
        self.series_damaged = 0
        """Unreadable entries of the series table: 0 or 1, because the first one hides all later entries."""
        self.down_since_ns = 0
        """CLOCK_MONOTONIC at which this reader first found the writer dead; 0 while it is alive."""
        self.exhausted = False
        """Whether the last :meth:`read` returned all that was committed when it began."""
        self._descriptor = descriptor
        self._file = _signature(os.fstat(descriptor))
        self._fixed = fixed
        self._final_state: _FinalState | None = None
        self._capacity = header.capacity
        self._mask = header.capacity - 1
        self._scratch: _Words = np.zeros((min(_CHUNK, header.capacity), schema.RECORD_WORDS), records.WORDS)
        self._pace = 1
        """Seven eighths of the number of new records found last time: the first guess for the next search."""
        self._next = 1
        self._head = 0
        self._delivered = 0
        self._lapped = 0
        self._damaged = 0
        self._skipped = 0
        self._history = 0
        """Sequence number of the newest record that counts as history."""
        self._read_ns = 1
        """Approximately the last instant read."""
        self._series: list[SeriesInfo] = []
        self._first_windows: list[int] = []
        self._dead = False
        self._searched = False
        self._idle = 0

    @classmethod
    def open(cls, path: Path) -> RingReader:
        """Open a ring at its oldest record.

        Raises:
            RingFormatError: there is no valid ring at ``path``; the message says what is wrong.
        """
        try:
            with opened(path) as first:
                size = os.fstat(first).st_size
                data = os.pread(first, schema.SERIES_TABLE_OFFSET, 0)
                header = decode_header(data, size)
                descriptor = os.dup(first)
        except PermissionError as error:
            raise RingFormatError(f"{path}: {ring_access_problem(path)}") from error
        except (OSError, RingFormatError) as error:
            raise RingFormatError(f"{path}: {error}") from error
        reader = cls(path, descriptor, header, data[: schema.HEADER.size])
        reader._find_head()  # so that the statistics are right from the start
        return reader

    def release(self) -> RingStatistics:
        """Close a dead writer's file and keep what it says about its rank. Nothing more is read from it.

        Raises:
            RingFormatError: the file has been damaged.
        """
        # The writer is dead, so a file that differs later is another one, even if it has the same inode.
        file = _signature(os.fstat(self._descriptor))
        series = range(len(self.series()))
        final_state = _FinalState(
            self.closed(),
            self.anchor(),
            self.statistics(),
            tuple(self.windows(index) for index in series),
            self.marks(),
        )
        if damage := self.damage():
            raise RingFormatError(damage)
        self._file, self._final_state = file, final_state
        self._scratch = np.zeros((0, schema.RECORD_WORDS), records.WORDS)
        self.close()
        return final_state.statistics

    @property
    def released(self) -> bool:
        """Whether everything is read and the file is closed."""
        return self._final_state is not None

    def fileno(self) -> int:
        """Return the file descriptor; -1 once it is closed."""
        return self._descriptor

    def damage(self) -> str:
        """Return how the file changed so that it can no longer be read; empty if it can."""
        size = os.fstat(self._descriptor).st_size
        if size != self.header.file_bytes:
            return f"its size changed from {self.header.file_bytes} to {size} bytes while it was being read"
        if os.pread(self._descriptor, schema.HEADER.size, 0) != self._fixed:
            return "its header was overwritten while it was being read"
        return ""

    def close(self) -> None:
        """Close the file; idempotent. Afterwards, only what :meth:`release` has kept is available."""
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
        """Continue in the copy that a writer made because its file was removed. Return whether there is one."""
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
        """Return whether the writer closed the ring in an orderly way."""
        return self._final_state.closed if self._final_state else self._word(schema.CLOSED_OFFSET) != 0

    def gone(self) -> bool:
        """Return whether the file was removed from the folder or replaced or, for a released ring, changed."""
        try:
            found = _signature(self.path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # Unknown: the folder cannot be searched at the moment.
        return found != self._file if self._final_state else found[:2] != self._file[:2]

    def anchor(self) -> ClockAnchor:
        """Return the writer's newest clock anchor."""
        if self._final_state:
            return self._final_state.anchor
        for _ in range(_RETRIES):
            pair = os.pread(self._descriptor, 16, schema.ANCHOR_OFFSET)
            if pair == os.pread(self._descriptor, 16, schema.ANCHOR_OFFSET) and any(pair[:8]):
                return ClockAnchor(int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little"))
        return ClockAnchor(self.header.epoch_ns, self.header.created_ns)

    def series(self) -> tuple[SeriesInfo, ...]:
        """Return the series entered so far, by index. The list ends at a damaged entry for as long as it is damaged."""
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

    def closed_series(self) -> frozenset[int]:
        """Return the indexes of the series that a living writer has closed."""
        closed = 0 if self._final_state else self._word(schema.SERIES_CLOSED_OFFSET)
        return frozenset(index for index in range(len(self._series)) if closed >> index & 1)

    def windows(self, series: int) -> tuple[WindowState, ...]:
        """Return the state of every window of a series, each consistent in itself.

        Args:
            series: Index in :meth:`series`.
        """
        if not 0 <= series < len(self._series) and not 0 <= series < len(self.series()):
            return ()
        if self._final_state:
            return self._final_state.windows[series]
        info = self._series[series]
        count = 0 if info.refused else info.window_count
        offset = schema.WINDOW_TABLE_OFFSET + self._first_windows[series] * schema.WINDOW_BYTES
        return decode_windows(self._steady(offset, count * schema.WINDOW_BYTES))

    def marks(self) -> Marks:
        """Return what the rank's host was doing last."""
        if self._final_state:
            return self._final_state.marks
        return decode_marks(self._steady(schema.COLLECTIVE_OFFSET, MARKS_BYTES), len(self._series))

    # Records

    def read(self, limit: int = 65536) -> Records:
        """Return the next committed records in order, at most ``limit``; an empty batch if there are none."""
        parts: list[Records] = []
        room, looked = limit, False
        while room > 0:
            if self.at_end:
                if (looked and not self._dead) or not self._advance_head():
                    looked = True
                    break
                looked = True
            self._forget_lapped(self._head)
            count = min(room, _CHUNK, self._head - self._next + 1, self._capacity - (self._next & self._mask))
            batch = self._collect(self._next, count)
            if len(batch):
                parts.append(batch)
            room -= count
        self.exhausted = looked and self.at_end
        if not parts:
            return records.empty()
        read = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._note_instant(read)
        return read

    @property
    def at_end(self) -> bool:
        """Whether every record known to be committed has been read."""
        return self._head < self._next

    def skip(self, keep: int) -> int:
        """Skip all but about the ``keep`` newest committed records, so that the next one begins a step.

        Returns:
            The number of records skipped; 0 if no more than ``keep`` are unread.
        """
        head = self._find_head()
        self._forget_lapped(head)
        first = head - min(max(0, keep), self._capacity) + 1
        if first <= self._next:
            return 0
        first = self._after_step(first, head)
        skipped = first - self._next
        self._skipped += skipped
        self._next = first
        return skipped

    def mark_history(self) -> int:
        """Declare all records written so far history: they are read, but those overwritten before that are not lost.

        Returns:
            The number of records written so far.
        """
        self._history = self._find_head()
        return self._history

    def next_ns(self) -> int:
        """Return the last instant of the next record; 0 if it is not available. It decides which ring to read first.

        A step without instants counts as being at the last instant read before it.
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
        return max(word[: _INSTANTS.get(words[8 * schema.CHECK_WORD], 4)]) or self._read_ns

    def lag_ns(self) -> int:
        """Return the time from the last record read to the newest known one; 0 if all are read.

        :meth:`statistics` looks for newer records; this does not.
        """
        if self._final_state or self.at_end:
            return 0
        return max(0, self._instant(self._head) - self._read_ns) if self._read_ns > 1 else 0

    def statistics(self, *, now: bool = True) -> RingStatistics:
        """Return the counts of all records committed so far.

        Args:
            now: Look for the newest record first. False: count up to the newest one already known, which costs nothing.
        """
        if self._final_state:
            return self._final_state.statistics
        written = self._find_head() if now else self._known_head
        self._forget_lapped(written)
        pending = written - self._next + 1
        return RingStatistics(written, self._delivered, self._lapped, self._damaged, pending, self._skipped)

    def _note_instant(self, read: Records) -> None:
        # The last record has the last instant, to within a step. If it has none, look at all of them.
        self._read_ns = records.last_ns(read[-1:]) or max(self._read_ns, records.last_ns(read))

    def _after_step(self, first: int, head: int) -> int:
        """Return the sequence number after the first STEP record at or after ``first``; ``first`` if none is near."""
        count = min(head - first + 1, len(self._scratch), self._capacity - (first & self._mask))
        expected = np.arange(first, first + count, dtype=records.WORDS)
        scratch = self._scratch[:count]
        self._read_slots(first, scratch)
        kinds = scratch.view(records.TRANSFER).reshape(-1)["kind"]
        steps = np.flatnonzero((kinds == _STEP) & (scratch[:, _SEQUENCE] == expected))
        return first + int(steps[0]) + 1 if len(steps) else first

    def _advance_head(self) -> bool:
        """Find the newest record. Return whether there are records to read."""
        head = self._find_head()
        if head < self._next:
            self._idle += 1
            if self._searched or (not self._dead and self._idle % _PROBE_EVERY) or self.alive():
                return False
            # The writer is dead: look once at every slot to find records that follow a damaged stretch.
            self._searched = True
            head = self._search_all()
            if head < self._next:
                return False
        return True

    def _forget_lapped(self, head: int) -> None:
        """Move the cursor to the oldest record that has not been overwritten."""
        oldest = head - self._capacity + 1
        if oldest > self._next:
            history = max(0, min(oldest, self._history + 1) - self._next)
            self._skipped += history
            self._lapped += oldest - self._next - history
            self._next = oldest

    def _collect(self, first: int, count: int) -> Records:
        """Copy committed records of one run of slots. Keep the unchanged ones, and account for each of the others."""
        expected = np.arange(first, first + count, dtype=records.WORDS)
        data: _Words = np.empty((count, schema.RECORD_WORDS), records.WORDS)
        for attempt in range(_RETRIES):
            self._read_slots(first, data)
            # The writer overwrites the oldest record first: if the first slot did not change, none did.
            stable = data[:, _SEQUENCE] == expected
            sound = stable & self._sound(data)
            if sound.all() and self._sequence(first) == first:
                break
            after = self._sequences(first, count)
            stable &= after == expected
            sound &= stable
            # Look again if a slot held its number before and after but its bytes are not sound. That helps if
            # stores were seen out of order, and not if the record is damaged.
            if attempt == _RETRIES - 1 or bool(np.all(sound | (after != expected))):
                self._account(expected[~sound], after[~sound])
                break
        self._next = first + count
        kept = data if sound.all() else data[sound]
        self._delivered += len(kept)
        return kept.view(records.TRANSFER).reshape(-1)

    def _account(self, expected: _Words, found: _Words) -> None:
        """Count committed records that cannot be delivered as lapped or damaged, by what is in their slots now."""
        lapped = history = 0
        for sequence, seen in zip(expected.tolist(), found.tolist(), strict=True):
            # A slot seen at 0 was being written, so read it again. If it is still 0, the writer is paused or died
            # there, and the newest committed record decides.
            now = seen or self._sequence(sequence)
            if now == 0:
                overwritten = sequence + self._capacity <= self._find_head() + 1
            else:
                overwritten = sequence < now <= _MAX_SEQUENCE and (now - sequence) & self._mask == 0
            lapped += overwritten
            history += overwritten and sequence <= self._history
        self._skipped += history
        self._lapped += lapped - history
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

        Probe the next number, then near where the last search suggests, then at doubling distances. Finish with a
        binary search and a scan.
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
        """Return a committed sequence number that proves that ``sequence`` was committed; 0 if there is none."""
        found = self._sequence(sequence)
        if found == 0:
            # Never written, or the writer is in (or died in) this slot on a later lap. The next slot shows which.
            sequence += 1
            found = self._sequence(sequence)
        plausible = sequence <= found <= _MAX_SEQUENCE and found & self._mask == sequence & self._mask
        return found if plausible else 0

    def _scan(self, low: int, count: int) -> int:
        """Return the newest committed sequence number among the ``count`` slots after ``low``; ``low`` if none is."""
        first = low + 1
        before_wrap = min(count, self._capacity - (first & self._mask))
        expected = np.arange(first, first + before_wrap, dtype=records.WORDS)
        found = self._sequences(first, before_wrap)
        # Commits are in order: every number before a committed one has been committed.
        committed = np.flatnonzero((found >= expected) & (((found ^ expected) & np.uint64(self._mask)) == 0))
        newest = min(int(found[committed[-1]]), _MAX_SEQUENCE) if len(committed) else low
        if newest >= first + before_wrap - 1 and before_wrap < count:
            return self._scan(newest, count - before_wrap)
        return newest

    def _search_all(self) -> int:
        """Look at every slot for committed records up to one lap ahead of the cursor."""
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
        """Return the sequence number that is now in the slot of ``sequence``."""
        return int.from_bytes(os.pread(self._descriptor, 8, _FIRST_SEQUENCE + ((sequence & self._mask) << 6)), "little")

    def _sequences(self, first: int, count: int) -> _Words:
        """Return the numbers now in the ``count`` slots from that of ``first`` on; valid until the next call."""
        scratch = self._scratch[:count]
        self._read_slots(first, scratch)
        return scratch[:, _SEQUENCE]

    def _read_slots(self, first: int, into: _Words) -> None:
        """Copy slots. What a truncated file no longer has reads as 0."""
        offset = schema.HEADER_BYTES + ((first & self._mask) << 6)
        whole = os.preadv(self._descriptor, [into.data], offset) // schema.RECORD_BYTES
        into[whole:] = 0

    def _steady(self, offset: int, nbytes: int) -> bytes:
        """Return bytes that two reads in a row saw, or what the last read saw; what a truncated file lacks is 0."""
        seen = os.pread(self._descriptor, nbytes, offset)
        for _ in range(_RETRIES):
            again = os.pread(self._descriptor, nbytes, offset)
            if again == seen:
                break
            seen = again
        return seen.ljust(nbytes, b"\0")


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
