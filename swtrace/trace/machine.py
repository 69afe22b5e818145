"""Time that the machine took from a thread: waiting for a core while ready to run, and steal by the hypervisor.

These two explain most of a step's noise on shared machines. Where the kernel does not report them, they are 0.
"""

from __future__ import annotations

import os

from swtrace.trace.clocks import now_ns

STEAL_EVERY_NS = 250_000_000
"""How often steal is read. /proc/stat grows with the number of processors and counts in hundredths of a second."""

_STEAL_FIELD = 8
_LINE_BYTES = 512


class MachineNoise:
    """Run delay and steal since the last sample. An instance belongs to the thread that takes the first sample."""

    __slots__ = ("_next_steal_ns", "_run_delay_ns", "_schedstat", "_started", "_stat", "_steal_ticks", "_tick_us")

    def __init__(self) -> None:
        """Open no file yet, because ``thread-self`` means the thread that opens it."""
        self._started = False
        self._schedstat = -1
        self._stat = -1
        self._run_delay_ns = 0
        self._steal_ticks = 0
        self._next_steal_ns = 0
        self._tick_us = 1_000_000 // os.sysconf("SC_CLK_TCK")

    def sample(self) -> tuple[int, int]:
        """Return ``(run delay, steal)`` since the last sample in us, with steal summed over the machine's processors.

        The first sample is (0, 0). Steal is read at most every :data:`STEAL_EVERY_NS`, so a value covers all samples
        since the last reading.
        """
        if not self._started:
            self._start()
            return 0, 0
        run_delay_us = 0
        if self._schedstat >= 0:
            run_delay_ns = self._read_run_delay_ns()
            run_delay_us = (run_delay_ns - self._run_delay_ns) // 1000
            # Carry the fraction of a microsecond over to the next sample.
            self._run_delay_ns += run_delay_us * 1000
        steal_us = 0
        if self._stat >= 0 and (now := now_ns()) >= self._next_steal_ns:
            self._next_steal_ns = now + STEAL_EVERY_NS
            ticks = self._read_steal_ticks()
            steal_us = max(0, ticks - self._steal_ticks) * self._tick_us
            self._steal_ticks = ticks
        return max(0, run_delay_us), steal_us

    def close(self) -> None:
        """Close the open files; later samples are (0, 0)."""
        for descriptor in (self._schedstat, self._stat):
            if descriptor >= 0:
                os.close(descriptor)
        self._schedstat = self._stat = -1
        self._started = True

    def _start(self) -> None:
        self._started = True
        self._schedstat = _open("/proc/thread-self/schedstat")
        self._stat = _open("/proc/stat")
        self._run_delay_ns = self._read_run_delay_ns()
        self._steal_ticks = self._read_steal_ticks()
        self._next_steal_ns = now_ns() + STEAL_EVERY_NS

    def _read_run_delay_ns(self) -> int:
        fields = _line(self._schedstat)
        return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else self._run_delay_ns

    def _read_steal_ticks(self) -> int:
        fields = _line(self._stat)
        return int(fields[_STEAL_FIELD]) if len(fields) > _STEAL_FIELD else self._steal_ticks


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _line(descriptor: int) -> list[bytes]:
    if descriptor < 0:
        return []
    try:
        return os.pread(descriptor, _LINE_BYTES, 0).split(b"\n", 1)[0].split()
    except OSError:
        return []
