"""A CUDA GPU as the device scenarios want it: kernels that spin for a known time and say when they did.

Each task writes its own beginning and end by the device's clock, in memory that nothing else writes: that is the
ground truth, apart from every event and stamp of the series under test.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from swtrace.series.device.accelerator import TorchDevice
from tests.support.device.rig import POISON, Span, Task

SPANS = 1 << 14
"""Spans that are kept, at most; twice as many instants, 16 bytes each."""
_WARP: Any = {"num_warps": 1}


class CudaRig:
    """One GPU."""

    def __init__(self, *, width: int = 256) -> None:
        """Compile everything and launch it once: nothing of that may happen in a capture."""
        from swtrace.series.device import kernels

        self.memory = torch.device("cuda", torch.cuda.current_device())
        self.width = width
        self.device = TorchDevice(self.memory)
        self.keep = True
        self._spin = kernels.spin[(1,)]
        nbytes = width * width * 4
        self._rows = torch.zeros(2 * SPANS, 2, dtype=torch.int64, device=self.memory)
        self._used = 1
        """Rows given out; row 0 is for what nobody asks about."""
        self._tasks: defaultdict[Task, list[tuple[int, int]]] = defaultdict(list)
        """By task, the rows of its beginnings and ends."""
        self._differs = torch.zeros(nbytes, dtype=torch.bool, device=self.memory)
        self._any = torch.zeros((), dtype=torch.bool, device=self.memory)
        self._looks = torch.zeros((), dtype=torch.int64, device=self.memory)
        self._wrong = torch.zeros((), dtype=torch.int64, device=self.memory)
        sample = torch.zeros(nbytes, dtype=torch.uint8, device=self.memory)
        self.fill(Task("warm-up", 0), sample, sample.clone(), 0)
        self.read(sample, sample, 0)
        self.catch_up()
        self._looks.zero_()
        self._wrong.zero_()

    def _spins(self, ns: int) -> int:
        """Enqueue a spin; return its row."""
        row = 0
        if self.keep and self._used < len(self._rows):
            row, self._used = self._used, self._used + 1
        self._spin(self._rows[row], ns, **_WARP)
        return row

    def compute(self, task: Task, ns: int) -> None:
        """Enqueue a spin."""
        row = self._spins(ns)
        if row:
            self._tasks[task].append((row, row))

    def fill(self, task: Task, buffer: Tensor, content: Tensor, ns: int) -> None:
        """Enqueue poison, a spin, the bytes, and a note of when they were there."""
        buffer.fill_(POISON)
        begin = self._spins(ns)
        buffer.copy_(content)
        end = self._spins(0)
        if begin and end:
            self._tasks[task].append((begin, end))

    def read(self, weight: Tensor, expected: Tensor, ns: int) -> None:
        """Enqueue a comparison, a spin, and the comparison once more."""
        flat = weight.view(-1).view(torch.uint8)
        self._look(flat, expected)
        self._spin(self._rows[0], ns, **_WARP)
        self._look(flat, expected)

    def _look(self, flat: Tensor, expected: Tensor) -> None:
        torch.ne(flat, expected, out=self._differs)
        torch.any(self._differs, out=self._any)
        self._wrong.add_(self._any)
        self._looks.add_(1)

    def spans(self, task: Task) -> list[Span]:
        """Return when a task was done; of what was captured, the last replay."""
        self.catch_up()
        rows = self._rows.tolist()
        return [Span(rows[begin][0], rows[end][1]) for begin, end in self._tasks[task]]

    def readings(self) -> tuple[int, int]:
        """Return how many comparisons were made, and how many of them failed."""
        self.catch_up()
        return int(self._looks), int(self._wrong)

    def graph(self) -> torch.cuda.CUDAGraph:
        """Return an empty graph."""
        return torch.cuda.CUDAGraph()

    def capture(self, graph: Any) -> AbstractContextManager[None]:
        """Capture the block's work."""
        return torch.cuda.graph(graph)  # type: ignore[no-untyped-call, return-value, no-any-return, unused-ignore]

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """Launch a graph."""
        graph.replay()

    def catch_up(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.memory)

    def pause(self, ns: int) -> None:
        """Sleep."""
        time.sleep(ns / 1e9)
