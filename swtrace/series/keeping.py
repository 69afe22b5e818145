"""Keeps the memory of a received weight that is still held, or viewed, after the layer's turn.

A hook that collects weights, a module that caches a transpose and an autograd graph hold weights whose values must
not change when the window goes to the next layer. So the holder gets the memory, and the window takes new memory. The
layer is *kept*: its tensors stay where they are for as long as something holds them.

Plain torch only. Frameworks and compiled code rely on constant pointers, and hold weights that they do not read.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import torch

from swtrace.series.references import storage_of

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
    """Detects references to the received layers of one series on one rank."""

    def __init__(self, where: str, layers: Sequence[SeriesLayer], windows: Sequence[Window]) -> None:
        """Count the present references, which do not keep a layer.

        Args:
            where: names series and rank in the log.
            layers: all of the series, each in its place.
            windows: this rank's.
        """
        self._where = where
        self._received = tuple(layer for layer in layers if not layer.owned)
        self._references = {layer: list(_references(layer)) for layer in self._received}
        """The fewest references that Python has counted to each tensor."""
        self._storages = {window: storage_of(window.buffer) for window in windows}
        self._tensors = {window: _uses(storage) for window, storage in self._storages.items()}
        """How many tensors use each window's memory if nothing else holds one."""
        # (How torch counts depends on its version, so measure what it counts for one tensor.)
        self._alone = _uses(storage_of(lone := torch.empty(1, device="cpu"))) - 1
        del lone
        self._warned = False
        self.paused = False
        """Set during reaches of compiled code, whose references read weights only in their turn."""

    def leave(self, layer: SeriesLayer) -> None:
        """Finish with a layer in its window; if something holds it, leave the memory to the holder."""
        window = layer.window
        if window is None or layer.kept or self.paused or not (self._referred_to(layer) or self._viewed(window)):
            return
        layer.kept = True
        window.renew()
        self._storages[window] = storage_of(window.buffer)
        self._tensors[window] = _uses(self._storages[window])
        for other in self._received:
            if other.window is window and not other.kept:
                other.point_into(window)
                self._tensors[window] += len(other.tensors)
        if not self._warned:
            self._warned = True
            logger.warning(_HELD, self._where, layer.layer_idx)

    def keeps(self, layer: SeriesLayer) -> bool:
        """Return whether a layer is kept and still held."""
        if not layer.kept or self.paused:
            return False
        return self._referred_to(layer) or _uses(storage_of(layer.tensors[0])) > self._alone + len(layer.tensors)

    def moved(self, layer: SeriesLayer, window: Window) -> None:
        """Count a layer that is about to move to another window, or back to one."""
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
