"""Host time: CLOCK_MONOTONIC in integer nanoseconds, and its relation to calendar time.

All instants inside swtrace are CLOCK_MONOTONIC. All processes of one boot of one host share it, unless they are in
different time namespaces. CLOCK_REALTIME appears only at the edge, by means of an anchor: both clocks read together.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

now_ns = time.monotonic_ns

_TRIES = 5
_OFFSET_FIELDS = 3
"""Clock, seconds, nanoseconds."""


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One instant on both clocks."""

    monotonic_ns: int
    realtime_ns: int

    @classmethod
    def take(cls) -> ClockAnchor:
        """Read both clocks together. Of several tries, return the one with the shortest time between the reads."""
        best_gap = 1 << 62
        best = cls(0, 0)
        for _ in range(_TRIES):
            before = time.monotonic_ns()
            realtime = time.time_ns()
            gap = time.monotonic_ns() - before
            if gap < best_gap:
                best_gap = gap
                best = cls(before + gap // 2, realtime)
        return best

    def to_realtime(self, monotonic_ns: int) -> int:
        """Return the CLOCK_REALTIME of a CLOCK_MONOTONIC instant, both in ns."""
        return monotonic_ns + self.realtime_ns - self.monotonic_ns


def boot_id() -> str:
    """Return an identifier of this boot of this host; the host's name if /proc is hidden."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


def clock_name(boot: str, offset: str) -> str:
    """Return what identifies a CLOCK_MONOTONIC: processes share that clock if and only if this is equal."""
    return boot if offset == "0" else f"{boot} {offset}"


def own_clock() -> str:
    """Return what identifies the CLOCK_MONOTONIC of this process."""
    return clock_name(boot_id(), clock_offset())


def clock_offset(offsets: Path = Path("/proc/self/timens_offsets")) -> str:
    """Return what this process's time namespace adds to CLOCK_MONOTONIC: ``SECONDS.NANOSECONDS``, or ``0``.

    Return ``unknown`` if /proc is hidden or cannot be read, and ``0`` on a kernel without time namespaces.
    """
    try:
        lines = offsets.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return "0" if offsets.parent.is_dir() else "unknown"
    except (OSError, ValueError):
        return "unknown"
    for name, seconds, nanoseconds in (fields for fields in map(str.split, lines) if len(fields) == _OFFSET_FIELDS):
        if name in {"monotonic", "1"}:  # by name since Linux 5.11, by number of the clock before
            return "0" if (seconds, nanoseconds) == ("0", "0") else f"{seconds}.{nanoseconds:0>9}"
    return "unknown"
