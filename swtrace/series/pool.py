"""The windows of one rank: who gets which next.

Under ``static`` each position has its window for life; under ``rolling`` every issue takes the next one, whoever it is
for, so that all ranks roll alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtrace.series import plan
from swtrace.series.layer import Window

if TYPE_CHECKING:
    import torch

    from swtrace.series.payload import PayloadLayout


class WindowPool:
    """All windows of one rank, each allocated when it is first asked for."""

    def __init__(self, policy: str, num_layers: int, prefetch_step: int, owned: frozenset[int]) -> None:
        self.rolling = policy == "rolling"
        self._prefetch_step = prefetch_step
        self._static = () if self.rolling else plan.static_windows(num_layers, prefetch_step, owned)
        self.count = plan.rolling_window_count(prefetch_step) if self.rolling else max(self._static) + 1
        self._windows: list[Window | None] = [None] * self.count

    def landing(self, position: int) -> int:
        """Return the window that receives ``position`` during post-processing.

        The first ``k`` positions come last and stay where the first forward will look for them.
        """
        return min(position, self._prefetch_step) if self.rolling else self._static[position]

    def window(self, index: int, layout: PayloadLayout, device: torch.device) -> Window:
        """Return a window, allocating it if this is the first time."""
        window = self._windows[index]
        if window is None:
            window = self._windows[index] = Window(index, layout, device)
        return window

    def take_out(self, index: int) -> Window:
        """Give an allocated window away: it was not laid out as windows turned out to be."""
        window = self._windows[index]
        if window is None:
            raise KeyError(index)
        self._windows[index] = None
        return window

    def complete(self, layout: PayloadLayout, device: torch.device) -> tuple[Window, ...]:
        """Allocate what is missing and return all windows."""
        return tuple(self.window(index, layout, device) for index in range(self.count))
