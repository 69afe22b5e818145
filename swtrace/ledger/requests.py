"""Traced requests of unfinished steps, for the links of the steps' spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from swtrace.trace.records import REQUEST, Records
from swtrace.trace.schema import MOST_REQUESTS

_STEPS = 1024
"""The most steps whose requests are kept, so that a ring of garbage does not fill a reader's memory."""
_MODULUS = 1 << 32

Links = tuple[tuple[int, int], ...]
"""Trace id and span id of each request, in the order of recording."""


class RequestLinks:
    """The REQUEST records of one series, from their arrival until their step is finished."""

    def __init__(self, ranks: int) -> None:
        """Begin without records.

        Args:
            ranks: Size of the group.
        """
        self._none: tuple[Links, ...] = ((),) * ranks
        self._steps: dict[int, list[list[tuple[int, int]]]] = {}
        """By step modulo 2**32, then by group rank; oldest first."""

    def add(self, records: Records, group_rank: npt.NDArray[np.int64]) -> None:
        """Keep the requests of some ranks' steps, except those without a valid trace context."""
        columns: Any = records.view(REQUEST)
        fields = (columns[name].tolist() for name in ("step", "trace_high", "trace_low", "span_id"))
        for step, high, low, span_id, rank in zip(*fields, group_rank.tolist(), strict=True):
            trace_id = high << 64 | low
            if not (trace_id and span_id):
                continue
            if step not in self._steps:
                self._steps[step] = [[] for _ in self._none]
            links = self._steps[step][rank]
            if len(links) < MOST_REQUESTS:
                links.append((trace_id, span_id))
        while len(self._steps) > _STEPS:
            del self._steps[next(iter(self._steps))]

    def take(self, steps: npt.NDArray[np.int64]) -> list[tuple[Links, ...]]:
        """Remove and return the links of finished steps, ``[step][rank]``."""
        if not self._steps:
            return [self._none] * len(steps)
        taken = (self._steps.pop(step % _MODULUS, None) for step in steps.tolist())
        return [self._none if each is None else tuple(map(tuple, each)) for each in taken]
