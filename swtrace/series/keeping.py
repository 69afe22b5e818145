"""Memory for whoever holds a received weight, or a view of it, beyond the layer's turn.

A hook that collects weights, a module that caches a transpose, a graph of autograd: what they hold must stay true when
its window goes to the next layer. So that memory is left to them, and the window takes new memory. The layer is
*kept*: its tensors stay where they are, for as long as something holds them.

Plain torch only. A framework's code and compiled code rely on constant pointers, and hold on to what they do not read.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import torch

from swtrace.series.holders import storage_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.series.layer import SeriesLayer, Window

logger = logging.getLogger(__name__)

_HELD = (
    "swtrace: %s, layer %d: something holds its weight, or a view of it, beyond the layer's turn, so its memory is "
    "kept until that reference is gone. To save memory, read the weight from its module in each step, under "
    "torch.no_grad()"
)
_uses = torch._C._storage_Use_Count  # noqa: SLF001 (there is no public way)


class Keeper:
    """Watches who else holds the received layers of one series on one rank."""

    def __init__(self, where: str, layers: Sequence[SeriesLayer], windows: Sequence[Window]) -> None:
        """Take who holds what now for nobody else.

        Args:
            where: names series and rank in the log.
            layers: all of the series, each in its place.
            windows: of this rank.
        """
        self._where = where
        self._received = tuple(layer for layer in layers if not layer.owned)
        self._references = {layer: list(_references(layer)) for layer in self._received}
        """How many references Python counts to each tensor, at the least."""
        self._storages = {window: storage_of(window.buffer) for window in windows}
        self._tensors = {window: _uses(storage) for window, storage in self._storages.items()}
        """How many tensors lie in each window's memory, if nobody else holds one."""
        # (How torch counts depends on its version: see what it counts for one tensor.)
        self._alone = _uses(storage_of(lone := torch.empty(1, device="cpu"))) - 1
        del lone
        self._told = False
        self.paused = False
        """Whoever holds weights now, a compiled graph, reads no others than in their turn."""

    def leave(self, layer: SeriesLayer) -> None:
        """Be done with a layer in its window: if something holds it, leave its memory to that."""
        window = layer.window
        if window is None or layer.kept or self.paused or not (self._referred_to(layer) or self._viewed(window)):
            return
        layer.kept = True
        window.renew()
        self._storages[window] = storage_of(window.buffer)
        self._tensors[window] = _uses(self._storages[window])
        for other in self._received:
            if other.window is window and not other.kept:
                other.lie_in(window)
                self._tensors[window] += len(other.tensors)
        if not self._told:
            self._told = True
            logger.warning(_HELD, self._where, layer.layer_idx)

    def keeps(self, layer: SeriesLayer) -> bool:
        """Return whether a layer is kept, and something holds it still."""
        if not layer.kept or self.paused:
            return False
        return self._referred_to(layer) or _uses(storage_of(layer.tensors[0])) > self._alone + len(layer.tensors)

    def moved(self, layer: SeriesLayer, window: Window) -> None:
        """Take into account that a layer is about to go to another window, or back to one."""
        if not layer.kept and layer.window is not None:
            self._tensors[layer.window] -= len(layer.tensors)
        self._tensors[window] += len(layer.tensors)

    def _viewed(self, window: Window) -> bool:
        return _uses(self._storages[window]) > self._tensors[window]

    def _referred_to(self, layer: SeriesLayer) -> bool:
        held = False
        least = self._references[layer]
        for index, count in enumerate(_references(layer)):
            if count > least[index]:
                held = True
            else:
                least[index] = count
        return held


def _references(layer: SeriesLayer) -> tuple[int, ...]:
    return tuple(map(sys.getrefcount, layer.tensors))
