"""Busy processes on a rank's core: ``python -m swtrace.cli.demo.busy CORE`` is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from swtrace.closing import Closing


class BusyProcesses(Closing):
    """Processes that compete with this one for its core, from when their ``with`` block begins.

    They start before that, because a start takes longer than a step.
    """

    def __init__(self, rank: int, number: int) -> None:
        """Start the processes; they wait."""
        self._cores = sorted(os.sched_getaffinity(0))
        self._core = self._cores[rank % len(self._cores)]
        command = ["-P", "-m", "swtrace.cli.child", str(os.getpid()), "swtrace.cli.demo.busy", str(self._core)]
        # In this process's session, because Linux shares cores between sessions first.
        self._processes = [
            subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            for _ in range(number)
        ]

    def __enter__(self) -> Self:
        """Keep this process on one core, and them busy there."""
        _pin([self._core])
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        return self

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.communicate()
        _pin(self._cores)


def _pin(cores: list[int]) -> None:
    """Keep all threads of this process on these cores."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


def _main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    sys.stdin.read()
    while True:
        pass


if __name__ == "__main__":
    _main()
