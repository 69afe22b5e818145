"""The windows of one rank: who is in which, and who gets which next.

A window is a byte buffer of one payload and the views into it, made once (or anew, where somebody holds on to a
weight: :mod:`swtrace.series.keeping`). Under ``static`` each
position has its window for life; under ``rolling`` every issue takes the next one, whoever it is for,
so that all ranks roll alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from swtrace.series import plan
from swtrace.series.payload import PayloadLayout, new_buffer

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.layer import SeriesLayer


class Window:
    """One buffer that holds a layer's weight on ranks that are not its source."""

    __slots__ = ("buffer", "index", "layout", "occupant", "pointers", "tag", "views")

    def __init__(self, index: int, layout: PayloadLayout, device: torch.device) -> None:
        self.index = index
        self.layout = layout
        self.occupant: SeriesLayer | None = None
        """The layer that its bytes belong to, or will once its broadcast is complete."""
        self._lie_in(new_buffer(layout, device))

    def _lie_in(self, buffer: Tensor) -> None:
        layout = self.layout
        self.buffer: Tensor = buffer
        self.views: tuple[Tensor, ...] = layout.views(buffer)
        self.pointers = tuple(view.data_ptr() for view in self.views)
        self.tag: Tensor | None = layout.tag(buffer) if layout.tagged else None

    def renew(self) -> None:
        """Leave the present memory to whoever holds it, and lie in new memory with the same tag."""
        tag = self.tag
        with torch.inference_mode(self.buffer.is_inference()):
            self._lie_in(new_buffer(self.layout, self.buffer.device))
        if self.tag is not None and tag is not None:
            self.tag.copy_(tag)


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
