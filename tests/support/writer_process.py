"""Real writers of rings for tests: a process that forks one writer per line it reads.

Run as a script it reads one JSON object per line (:class:`Order`), forks, and the child answers with
its pid and its ring. Forking from a process that has loaded only the recorder makes hundreds of kills
cheap. What a writer writes is a function of the sequence number alone, so readers can check every bit
of every record (:func:`check`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy as np

    from swtrace.trace.recorder import SeriesRecorder
    from swtrace.trace.records import Records


@dataclass(frozen=True, slots=True)
class Order:
    """What a writer should do."""

    directory: str
    records: int = 64
    checked: bool = False
    count: int = -1
    """Stop writing after this many records and wait to be killed; -1: never stop."""
    rank: int = 0
    heir: bool = False
    """Fork a child that outlives the writer, and writes with what it inherited."""


def identity(rank: int = 0, run_id: str = "run") -> RankIdentity:
    """Return a rank's identity."""
    return RankIdentity(run_id, rank, "host", "boot", os.getpid(), time.time_ns(), "tiny", "0")


def series_info(name: str = "o_proj", *, start_layer: int = 0, **changes: object) -> SeriesInfo:
    """Return the constants of a series of 61 layers on two ranks."""
    layers = tuple(range(start_layer, start_layer + 61))
    info = SeriesInfo(name, start_layer, 61, layers, 1, "static", 2, (0, 1), 0, "gloo", "source", "host", 1 << 20, 31)
    return dataclasses.replace(info, **changes)  # type: ignore[arg-type]


def write(series: SeriesRecorder, first: int, count: int) -> None:
    """Write the records with these sequence numbers."""
    for n in range(first, first + count):
        series.transfer(3 * n, 5 * n, 7 * n, 11 * n, n, 2 * n, n % 61, (n + 1) % 61, n % 7, n % 5, n % 6, n % 32, n % 3)


def check(records: Records) -> None:
    """Fail unless every bit of every record is what :func:`write` wrote, in order and without repetition."""
    n = records["sequence"].astype("int64")
    wanted: dict[str, np.ndarray] = {
        "issued_ns": 3 * n,
        "ready_ns": 5 * n,
        "wait_begin_ns": 7 * n,
        "wait_end_ns": 11 * n,
        "step": n,
        "operation": 2 * n,
        "position": n % 61,
        "reach_position": (n + 1) % 61,
        "source": n % 7,
        "window": n % 5,
        "kind": n * 0 + 1,
        "series": n * 0,
        "observed_clock": n % 6 + n % 3 * 16,
        "flags": n % 32,
    }
    for field, values in wanted.items():
        assert (records[field] == values).all(), f"torn record: {field}"
    assert (n[1:] > n[:-1]).all(), "out of order"


class Writers:
    """Starts writers and kills them."""

    def __init__(self) -> None:
        """Start the process that forks."""
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self._alive: set[int] = set()

    def start(self, order: Order) -> tuple[int, Path]:
        """Start a writer and return its pid and its ring."""
        if self._process.stdin is None:
            raise RuntimeError("no pipe")
        self._process.stdin.write(json.dumps(dataclasses.asdict(order)) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> tuple[int, Path]:
        """Return the next pid and ring that a writer reported."""
        if self._process.stdout is None:
            raise RuntimeError("no pipe")
        pid, path = self._process.stdout.readline().split(" ", 1)
        self._alive.add(int(pid))
        return int(pid), Path(path.strip())

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """End a writer, which closes its ring on SIGTERM, and wait until it has ended.

        It may be gone already: a ring that is cut short while it is written ends its writer by SIGBUS.
        """
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        self._alive.discard(pid)
        until(lambda: _is_gone(pid))

    def __enter__(self) -> Self:
        """Return the writers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill all writers, and the process that forks them."""
        for pid in tuple(self._alive):
            self.kill(pid)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def _is_gone(pid: int) -> bool:
    """Return whether a process has ended, even if it was not reaped because its parent was killed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` holds, for a limited time."""
    from tests.support.patience import patience  # not importable when this file runs as a script

    deadline = time.monotonic() + patience()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition never held")
        os.sched_yield()


def _run(order: Order) -> None:
    recorder = Recorder.create(
        Path(order.directory), identity(order.rank), records=order.records, checked=order.checked
    )
    series = recorder.add_series(series_info())

    def close(_number: int, _frame: object) -> None:
        recorder.close()
        os._exit(0)

    signal.signal(signal.SIGTERM, close)
    if order.heir and os.fork() == 0:
        write(series, 1, 10)
        os.write(1, f"{os.getpid()} {recorder.path}\n".encode())
        while True:
            signal.pause()
    os.write(1, f"{os.getpid()} {recorder.path}\n".encode())
    written = 0
    while order.count < 0 or written < order.count:
        batch = 1000 if order.count < 0 else min(1000, order.count - written)
        write(series, written + 1, batch)
        written += batch
    while True:
        signal.pause()


def _serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                _run(Order(**json.loads(line)))
            finally:
                os._exit(1)


if __name__ == "__main__":
    _serve()
