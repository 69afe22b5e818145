"""Follow a folder of rings: find them as they come and go, and drain them fairly.

While a reader catches up, records come in the order of their time across the ranks of a run, give or
take a slice: a ledger that holds a bounded number of unfinished steps then sees every step whole.
A tail that is told to keep to the newest steps leaves the others out, on all ranks of a run alike, and
counts them as skipped. A :class:`Tail` belongs to one thread.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swtrace.errors import RingFormatError
from swtrace.trace.directory import ring_paths
from swtrace.trace.reader import RingReader
from swtrace.trace.records import Records

SLICE = 1024
"""Records read from one ring before the next one has its turn: 16 steps of 61 layers."""
LIMIT_PER_RING = 16384
"""Records read from a ring in one poll, on average."""
MAX_RINGS = 1024
"""More rings than that in one folder are told as problems: each costs a file descriptor and 128 KiB."""
RETRY_S = 10.0
"""A file that could not be read is tried again when it changed, and after so long."""

BEHIND = 2
"""A tail that keeps to the newest steps leaves out what it is behind by, once that is so many times as much ..."""
_FULL = 2
"""... or this part of the ring: what the writer is about to overwrite would be lost in bits and pieces."""

_Signature = tuple[int, ...]


class Poll(NamedTuple):
    """What is new since the last poll."""

    joined: tuple[RingReader, ...]
    batches: tuple[tuple[RingReader, Records], ...]
    """In the order in which they want to be taken in; a ring may stand here several times."""
    ended: tuple[RingReader, ...]
    """Writer gone and everything read: told once. The reader stays for its windows and statistics."""
    gone: tuple[RingReader, ...]
    """Ended, and its file has been removed: told once; the reader is closed."""
    more: bool
    """There is more to read at once."""


@dataclass(slots=True)
class _Problem:
    signature: _Signature
    retry_at_s: float


class Tail:
    """Readers for all rings of a folder.

    Args:
        directory: The folder; it may not exist yet.
        run_id: Only rings of this run; None for all.
        rescan_s: How often to look for files that came or went, in seconds.
        newest_steps: Begin a ring about so many steps before its end, and return to there when it is written
            faster than it is read; None: read everything that there is.
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
        """Files that look like rings and cannot be read, and why."""
        self._run_id = run_id
        self._rescan_s = rescan_s
        self._newest_steps = newest_steps
        self._rescan_at_s = 0.0
        self._readers: dict[Path, RingReader] = {}
        self._ended: set[Path] = set()
        self._other_runs: set[Path] = set()
        self._retries: dict[Path, _Problem] = {}

    @property
    def readers(self) -> tuple[RingReader, ...]:
        """All rings at hand, in the order of their paths."""
        return tuple(self._readers[path] for path in sorted(self._readers))

    def poll(self, limit_per_ring: int = LIMIT_PER_RING, *, rescan: bool = False) -> Poll:
        """Read what the rings have, on average up to ``limit_per_ring`` records each; look for new rings if it is time.

        Folders are looked at after the rings are read: a rank that had a part in what was read made its ring
        before, so with ``rescan`` it has joined by the time the records are taken in.

        Args:
            limit_per_ring: Bounds how long a poll takes.
            rescan: Look for rings whether or not it is time.
        """
        runs: dict[str, list[RingReader]] = {}
        for path, reader in self._readers.items():
            if path not in self._ended:
                runs.setdefault(reader.identity.run_id, []).append(reader)
        batches: list[tuple[RingReader, Records]] = []
        ended: list[RingReader] = []
        more = False
        for readers in runs.values():
            # Asked before reading: what a dead writer committed is all there.
            dead = [reader for reader in readers if not reader.alive()]
            furthest_behind = _drain(readers, limit_per_ring, batches)
            if furthest_behind is not None and self._newest_steps is not None:
                _catch_up(readers, furthest_behind, self._newest_steps)
            more |= furthest_behind is not None
            drained = [reader for reader in dead if reader.statistics().pending == 0]
            more |= len(drained) < len(dead)
            ended += drained
        self._ended.update(reader.path for reader in ended)
        gone = tuple(self._readers[path] for path in sorted(self._ended) if self._readers[path].gone())
        for reader in gone:
            self._ended.remove(reader.path)
            del self._readers[reader.path]
            reader.close()
        joined = self._rescan() if rescan or time.monotonic() >= self._rescan_at_s else ()
        return Poll(joined, tuple(batches), tuple(ended), gone, more or bool(joined))

    def close(self) -> None:
        """Close all readers; idempotent."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._ended.clear()

    def _rescan(self) -> tuple[RingReader, ...]:
        now_s = time.monotonic()
        self._rescan_at_s = now_s + self._rescan_s
        paths = ring_paths(self.directory)
        present = set(paths)
        self._other_runs &= present
        for path in self.problems.keys() - present:
            self._settle(path)
        joined = []
        for path in paths:
            if path in self._readers or path in self._other_runs:
                continue
            problem = self._retries.get(path)
            signature = _signature(path)
            if problem is not None and problem.signature == signature and now_s < problem.retry_at_s:
                continue
            reader = self._open(path)
            if isinstance(reader, str):
                self.problems[path] = reader
                self._retries[path] = _Problem(signature, now_s + RETRY_S)
                continue
            self._settle(path)
            if self._run_id is not None and reader.identity.run_id != self._run_id:
                self._other_runs.add(path)
                reader.close()
                continue
            self._readers[path] = reader
            if self._newest_steps is not None:
                reader.skip(_records(reader, self._newest_steps) or reader.header.capacity)
            joined.append(reader)
        return tuple(joined)

    def _open(self, path: Path) -> RingReader | str:
        """Return a reader, or why there is none."""
        if len(self._readers) >= MAX_RINGS:
            return f"{path}: more than {MAX_RINGS} rings in one folder"
        try:
            return RingReader.open(path)
        except RingFormatError as error:
            return str(error)

    def _settle(self, path: Path) -> None:
        self.problems.pop(path, None)
        self._retries.pop(path, None)


def _drain(
    readers: list[RingReader], limit_per_ring: int, batches: list[tuple[RingReader, Records]]
) -> RingReader | None:
    """Read the rings of one run, a slice at a time, always from the one that is furthest behind; of equals, in turns.

    Returns:
        The one that is furthest behind now; None if nothing is left.
    """
    room = limit_per_ring * len(readers)
    turns = [(reader.next_ns(), index, index) for index, reader in enumerate(readers)]
    heapq.heapify(turns)
    for turn in itertools.count(len(readers)):
        if not turns or room <= 0:
            break
        _, _, index = heapq.heappop(turns)
        slice_ = min(SLICE, limit_per_ring, room)
        records = readers[index].read(slice_)
        if len(records):
            batches.append((readers[index], records))
        room -= len(records)
        next_ns = readers[index].next_ns()
        if next_ns > 0 or len(records) == slice_:
            heapq.heappush(turns, (next_ns, turn, index))
    return readers[turns[0][2]] if turns else None


def _catch_up(readers: list[RingReader], furthest_behind: RingReader, newest_steps: int) -> None:
    """Go on near the end of the rings of one run, if the one that is furthest behind is too far behind.

    All of them: a step is known only where the records of all ranks are.
    """
    keep, capacity = _records(furthest_behind, newest_steps), furthest_behind.header.capacity
    if not keep or furthest_behind.statistics().pending <= min(BEHIND * keep, capacity // _FULL):
        return
    for reader in readers:
        if keep := _records(reader, newest_steps):
            reader.skip(min(keep, reader.header.capacity // (2 * _FULL)))


def _records(reader: RingReader, steps: int) -> int:
    """Return how many records steps take in a ring; 0 where it has no series yet."""
    return steps * sum(info.num_layers + 1 for info in reader.series() if not info.refused)


def _signature(path: Path) -> _Signature:
    try:
        status = path.lstat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
