"""Follow a folder of rings: find rings as they come and go, and drain them fairly.

While a reader catches up, records arrive in time order across the ranks of a run, to within one slice. A ledger
that holds a bounded number of unfinished steps therefore sees every step complete. A tail that is limited to the
newest steps skips the others on all ranks of a run alike, and counts them. A :class:`Tail` belongs to one thread.

A bad ring costs no other ring a record. If reading it fails in any way, only that ring is dropped, and its
problem is reported with the reason.
"""

from __future__ import annotations

import heapq
import itertools
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from swtrace.errors import RingFormatError
from swtrace.trace.directory import folder_problem, listed
from swtrace.trace.records import Records
from swtrace.trace.ring_reader import RingReader

SLICE = 2048
"""Records read from one ring before it is the next ring's turn: about 33 steps of 61 layers."""
AHEAD = 1 << 20
"""Limits the slice so that all rings together get at most this many records ahead of the ring that is read last. These
records must be held until its records arrive."""
LIMIT_PER_RING = 16384
"""Average number of records read from each ring in one poll."""
MAX_RINGS = 1024
"""Open rings per folder; further ones are reported as problems. Each costs a file descriptor and 128 KiB. Rings of dead
ranks are closed once they have been read."""
SPARE_FILES = 64
"""Descriptors below the process's limit that are reserved for everything else: clients, exporters, recordings."""
MOST_FILES = 1 << 16
"""The most descriptors that a swtrace process asks for."""
RETRY_S = 10.0
"""An unreadable file is tried again when it changes, and after this time."""

_TICK_NS = 1_000_000_000
"""File systems record the time of a change at least this precisely."""

BEHIND = 2
"""A tail limited to the newest steps skips records once it is behind by this many times that number of steps ..."""
_FULL = 2
"""... or by 1 / this of the ring. Otherwise the writer would overwrite parts of steps before they are read."""

_Signature = tuple[int, ...]
_Result = TypeVar("_Result")


class Poll(NamedTuple):
    """What is new since the last poll."""

    joined: tuple[RingReader, ...]
    batches: tuple[tuple[RingReader, Records], ...]
    """In the order in which they must be processed. A ring may occur several times."""
    ended: tuple[RingReader, ...]
    """Writer dead and everything read; reported once. The reader stays available for its windows and statistics."""
    gone: tuple[RingReader, ...]
    """Ended and its file removed or changed, or no longer readable (see the problems); reported once. The reader is
    closed."""
    more: bool
    """There is more to read now."""


@dataclass(slots=True)
class _Problem:
    signature: _Signature
    retry_at_s: float


class Tail:
    """Readers for all rings of a folder.

    Args:
        directory: The folder. It need not exist yet.
        run_id: Read only rings of this run; None for all.
        rescan_s: How often to look for new and removed files, in seconds.
        newest_steps: Start about this many steps before the end of each ring, and skip to there again when a ring is
            written faster than it is read. None: read everything.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str | None = None,
        rescan_s: float = 0.25,
        newest_steps: int | None = None,
    ) -> None:
        self.directory = directory
        self.problems: dict[Path, str] = {}
        """Files that look like rings but cannot be read, with the reason; also the folder, if no rank in it could be
        seen."""
        self._run_id = run_id
        self._rescan_s = rescan_s
        self._newest_steps = newest_steps
        self._rescan_at_s = 0.0
        self._readers: dict[Path, RingReader] = {}
        """Sorted by path."""
        self._ended: set[Path] = set()
        self._other_runs: set[Path] = set()
        self._listed: _Signature = ()
        """State of the folder when it was last listed; empty if it may have changed since."""
        self._retries: dict[Path, _Problem] = {}
        self._dropped: list[RingReader] = []

    @property
    def readers(self) -> tuple[RingReader, ...]:
        """The readers of all rings that are open or ended, sorted by path."""
        return tuple(self._readers.values())

    def poll(self, limit_per_ring: int = LIMIT_PER_RING) -> Poll:
        """Read new records from the rings, and look for new rings if a rescan is due.

        Args:
            limit_per_ring: Average number of records per ring. Bounds how long a poll takes.
        """
        runs: dict[str, list[RingReader]] = {}
        for path, reader in tuple(self._readers.items()):
            if path not in self._ended and self._is_sound(reader):
                runs.setdefault(reader.identity.run_id, []).append(reader)
        batches: list[tuple[RingReader, Records]] = []
        ended: list[RingReader] = []
        more = False
        for readers in runs.values():
            # Checked before reading: then everything that a dead writer committed is in its ring.
            dead = [reader for reader in readers if not reader.alive()]
            furthest_behind = self._drain(readers, limit_per_ring, batches)
            if furthest_behind is not None and self._newest_steps is not None:
                self._catch_up(readers, furthest_behind, self._newest_steps)
            more |= furthest_behind is not None
            for reader in dead:
                pending = self._try(reader, lambda reader: reader.statistics().pending) if self._holds(reader) else None
                more |= bool(pending)
                if pending == 0 and self._try(reader, RingReader.release) is not None:
                    ended.append(reader)
        self._ended.update(reader.path for reader in ended)
        for path in sorted(self._ended):
            if self._readers[path].gone():
                self._close(self._readers[path])
        gone, self._dropped = tuple(self._dropped), []
        joined = self.rescan() if time.monotonic() >= self._rescan_at_s else ()
        return Poll(joined, tuple(batches), tuple(ended), gone, more or bool(joined))

    def rescan(self) -> tuple[RingReader, ...]:
        """Look for new rings now and return their readers. The next poll reads them."""
        now_s = time.monotonic()
        self._rescan_at_s = now_s + self._rescan_s
        paths = self._changed()
        if paths is None:
            return ()
        present = set(paths)
        self._other_runs &= present
        for path in self.problems.keys() - present - {self.directory}:
            self._clear_problem(path)
        joined = []
        room = _room_for_files()
        for path in paths:
            if path in self._readers or path in self._other_runs:
                continue
            problem = self._retries.get(path)
            if problem is not None and problem.signature == _signature(path) and now_s < problem.retry_at_s:
                continue
            reader = self._open(path, room)
            if reader is None:
                continue
            self._clear_problem(path)
            if self._run_id is not None and reader.identity.run_id != self._run_id:
                self._other_runs.add(path)
                reader.close()
                continue
            self._readers[path] = reader
            if self._newest_steps is not None:
                reader.skip(_records(reader, self._newest_steps) or reader.header.capacity)
            joined.append(reader)
        if joined:
            self._readers = dict(sorted(self._readers.items()))
        return tuple(joined)

    def _changed(self) -> tuple[Path, ...] | None:
        """Return the rings of the folder; None if it cannot be listed, or is unchanged since the last time."""
        state = _signature(self.directory, follow_symlinks=True)
        if state and state == self._listed and not self._retries:
            return None
        problem = ""
        try:
            problem = folder_problem(self.directory)
            paths = listed(self.directory)
        except OSError as error:
            self._listed = ()
            self.problems[self.directory] = problem or f"{self.directory}: cannot be listed: {error.strerror or error}"
            return None
        self._clear_problem(self.directory)
        if problem:
            self.problems[self.directory] = problem
        # A further change within the same tick of the file system's clock would not be visible.
        self._listed = state if state and time.time_ns() - state[-1] > _TICK_NS else ()
        return paths

    def drop(self, reader: RingReader, why: str) -> None:
        """Close a ring that cannot be used and add it to the problems. It is tried again later."""
        if self._holds(reader):
            self._close(reader)
            self._refuse(reader.path, f"{reader.path}: {why}", RETRY_S)

    def discard(self, reader: RingReader) -> None:
        """Close a ring that is of no use. The next poll reports it as gone."""
        if self._holds(reader):
            self._close(reader)

    def _holds(self, reader: RingReader) -> bool:
        return self._readers.get(reader.path) is reader

    def _close(self, reader: RingReader) -> None:
        """Close a ring. The next poll reports it."""
        del self._readers[reader.path]
        self._ended.discard(reader.path)
        reader.close()
        self._dropped.append(reader)
        self._listed = ()

    def _is_sound(self, reader: RingReader) -> bool:
        """Return whether a ring can still be read. If not, drop it."""
        damage = self._try(reader, RingReader.damage)
        if damage:
            self.drop(reader, damage)
        return damage == ""

    def _try(self, reader: RingReader, action: Callable[[RingReader], _Result]) -> _Result | None:
        """Return the result of an action on a ring. If it raises anything, drop the ring and return None."""
        try:
            return action(reader)
        except Exception as error:  # noqa: BLE001 (one ring must not end the reading of all others)
            self.drop(reader, f"cannot be read: {error or type(error).__name__}")
            return None

    def _drain(
        self, readers: list[RingReader], limit_per_ring: int, batches: list[tuple[RingReader, Records]]
    ) -> RingReader | None:
        """Read the rings of one run in slices, always from the ring furthest behind; take turns among equals.

        Returns:
            The ring that is now furthest behind; None if nothing is left to read.
        """
        room = limit_per_ring * len(readers)
        turns = [
            (next_ns, index, index)
            for index, reader in enumerate(readers)
            if (next_ns := self._try(reader, RingReader.next_ns)) is not None
        ]
        heapq.heapify(turns)
        for turn in itertools.count(len(readers)):
            if not turns or room <= 0:
                break
            _, _, index = heapq.heappop(turns)
            slice_ = min(SLICE, AHEAD // len(readers), limit_per_ring, room)
            records = self._try(readers[index], partial(RingReader.read, limit=slice_))
            if records is None:
                continue
            if len(records):
                batches.append((readers[index], records))
            room -= len(records)
            if readers[index].exhausted:
                continue
            next_ns = self._try(readers[index], RingReader.next_ns)
            if next_ns is not None:
                heapq.heappush(turns, (next_ns, turn, index))
        return readers[turns[0][2]] if turns else None

    def _catch_up(self, readers: list[RingReader], furthest_behind: RingReader, newest_steps: int) -> None:
        """Skip to near the end of all rings of one run if the one furthest behind is too far behind.

        Skip in all of them, because a step needs the records of all ranks.
        """
        keep, capacity = _records(furthest_behind, newest_steps), furthest_behind.header.capacity
        if not keep or furthest_behind.statistics().pending <= min(BEHIND * keep, capacity // _FULL):
            return
        for reader in filter(self._holds, readers):
            if keep := _records(reader, newest_steps):
                self._try(reader, partial(RingReader.skip, keep=min(keep, reader.header.capacity // (2 * _FULL))))

    def close(self) -> None:
        """Close all readers; idempotent."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._ended.clear()

    def _open(self, path: Path, room: int) -> RingReader | None:
        """Return a reader with a descriptor below ``room``; None, with a new entry in the problems, if impossible."""
        # Reading a dead rank's ring to its end frees room, so do not delay the next attempt.
        if len(self._readers) - len(self._ended) >= MAX_RINGS:
            self._refuse(path, f"{path}: not read: the folder has more than {MAX_RINGS} rings of living ranks", 0)
            return None
        try:
            reader = RingReader.open(path)
        except (RingFormatError, MemoryError) as error:
            self._refuse(path, str(error) or f"{path}: {type(error).__name__}", RETRY_S)
            return None
        # The system returns the lowest free descriptor, so its number shows how full the table is.
        if reader.fileno() >= room:
            reader.close()
            self._refuse(path, f"{path}: not read: too many open files; raise the limit (ulimit -n)", 0)
            return None
        return reader

    def _refuse(self, path: Path, why: str, retry_s: float) -> None:
        self.problems[path] = why
        self._retries[path] = _Problem(_signature(path), time.monotonic() + retry_s)

    def _clear_problem(self, path: Path) -> None:
        self.problems.pop(path, None)
        self._retries.pop(path, None)


def _room_for_files() -> int:
    """Return the lowest descriptor number that rings may not use."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if limit == resource.RLIM_INFINITY else limit - min(SPARE_FILES, limit // 2)


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as allowed, because each living rank's ring takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _records(reader: RingReader, steps: int) -> int:
    """Return how many records ``steps`` steps take in a ring; 0 if it has no series yet."""
    return steps * sum(info.num_layers + 1 for info in reader.series() if not info.refused)


def _signature(path: Path, *, follow_symlinks: bool = False) -> _Signature:
    try:
        status = path.stat(follow_symlinks=follow_symlinks)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
