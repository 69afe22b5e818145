"""Busy processes on a rank's core: ``python -m swtrace.cli.demo.busy CORE`` is one of them."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swtrace.cli.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def crowded(rank: int, processes: int) -> Iterator[None]:
    """Keep this process on one core, and on the same core so many processes that are always busy."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[rank % len(cores)]
    with ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(Child.start("swtrace.cli.demo.busy", [str(core)]))
        stack.callback(_pin, cores)
        _pin([core])
        yield


def _pin(cores: list[int]) -> None:
    """Keep all threads of this process on these cores."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


def _main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    while True:
        pass


if __name__ == "__main__":
    _main()
