"""Weights that are read where nothing waits for them: looked for at the end of each step, in plain torch.

Whoever reads a weight from its module waits (:mod:`swtrace.series.waiting`, :mod:`swtrace.series.tables`). Compiled
code that does not call the linear does not, nor does whoever kept a Parameter or a view of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from swtrace.series.holders import living_modules, storage_of, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.series.layer import SeriesLayer
    from swtrace.series.pool import Window

_IN_GRAPH = (
    "{where}: step {step}: {unwaited} layers were not waited for in compiled code: the model does not use them, or "
    "reads their weights without calling their linears, as MultiheadAttention does with out_proj; its results may be "
    "wrong. Leave unused layers out of the series; call the linear itself, or put @torch.compiler.disable on the "
    "forward that reads it"
)
_KEPT = (
    "{where}, layer {layer}: step {step} did not wait for it, and something else holds a reference to its weight, or a "
    "view of it, which shows other layers' bytes, too; read the weight from its module in every step"
)
_VIEW = (
    "{where}: step {step}: {holder} holds a view of a weight, which rolling windows leave behind; read the weight from "
    "its module in every step, or set SWTRACE_WINDOWS=static"
)


class Misreads:
    """Finds them in one series on one rank."""

    def __init__(self, where: str, layers: Sequence[SeriesLayer], windows: Sequence[Window], *, rolling: bool) -> None:
        """Take what refers to the layers now for what may.

        Args:
            where: names series and rank in errors.
            layers: all of the series.
            windows: of this rank.
            rolling: whether a layer moves from window to window.
        """
        self._where = where
        self._layers = layers
        self._rolling = rolling
        self._windows = windows
        """As long as they are there, so are these memories."""
        self._memories = frozenset(storage_of(window.buffer) for window in windows)
        self._views = self._count_views()
        """Tensors that lie in the windows; whoever holds more of them was searched for."""
        self._references = {layer: _references(layer) for layer in layers}
        self.in_graph = False
        """Compiled code reaches the layers."""

    def found(self, step: int, unwaited: int) -> str:
        """Return which read of a finished step went without a wait; empty if none is known of.

        Args:
            step: its number.
            unwaited: how many layers it did not wait for.
        """
        where = self._where
        if unwaited and self.in_graph:
            return _IN_GRAPH.format(where=where, step=step, unwaited=unwaited)
        if self._rolling and (views := self._count_views()) > self._views:
            self._views = views
            own = (tensor for layer in self._layers for tensor in layer.tensors)
            holder = view_of(self._memories, living_modules(), own)
            if holder:
                return _VIEW.format(where=where, step=step, holder=holder)
        for layer in self._layers if unwaited else ():
            if not layer.owned and layer.waited_step != step and self._kept(layer):
                return _KEPT.format(where=where, step=step, layer=layer.layer_idx)
        return ""

    def _kept(self, layer: SeriesLayer) -> bool:
        """Whether somebody has come to refer to a layer's tensors, or to views of windows."""
        more = any(now > then for now, then in zip(_references(layer), self._references[layer], strict=True))
        return more or self._count_views() > self._views

    def _count_views(self) -> int:
        return sum(map(torch._C._storage_Use_Count, self._memories))  # noqa: SLF001 (there is no public way)


def _references(layer: SeriesLayer) -> tuple[int, ...]:
    """Return how many references Python counts to each of a layer's tensors."""
    return tuple(map(sys.getrefcount, layer.tensors))
