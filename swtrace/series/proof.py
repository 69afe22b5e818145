"""Proof that a layer's matmul reads the layer's tensors, and nothing else that differs between layers.

A quant method may leave parameters in place and multiply with a private copy made from them. Sharing
such a layer would give wrong results, or save nothing. So three properties are tried:

- The tensors decide the result: with another layer's tensors, a layer gives that layer's result.
- The tensors are read: with the elements of a tensor rearranged, the result differs.
- The tensors may move: in its window, a layer gives the same result as before it was moved.

The first two are tried on two layers before any is moved, so that a method which fails them leaves
every weight where it wants it. All changes are undone. Everything is local to the rank: a few small
matmuls per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from swtrace.series.payload import payload_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.layer import SeriesLayer

TryOut = Callable[["nn.Module"], "Tensor"]
"""Multiplies the same fixed input with a layer's weight each time, without waiting."""

TOLERANCE = 1e-2
"""Largest difference between equal results, relative to the largest element. Kernels may sum in another order."""


class Proof:
    """Tries the layers of one series on one rank, during their placement and after it."""

    def __init__(self, try_out: TryOut) -> None:
        self._try_out = try_out
        self._results: dict[int, Tensor] = {}
        """By position, the result with the layer's true weight, which each rank has held for a moment."""
        self._problem = ""

    def processed(self, layer: SeriesLayer) -> None:
        """Record the layer's result while the layer is as its own post-processing left it."""
        try:
            self._results[layer.position] = self._try_out(layer.module).detach().clone()
        except Exception as error:  # noqa: BLE001 (any error of a quant method; the ranks must stay together)
            self._problem = self._problem or (
                f"{method_name(layer.module)} could not be tried out on layer {layer.layer_idx}: "
                f"{type(error).__name__}: {error}"
            )

    def refute(self, first: SeriesLayer, second: SeriesLayer) -> str:
        """Return why these two layers, as their own post-processing left them, cannot be shared; empty if they can."""
        return self._attempt(lambda: self._refute_deciding(first, second) or self._refute_counting(first))

    def refute_placed(
        self, layers: Sequence[SeriesLayer], holders: Mapping[int, SeriesLayer], moved: Collection[int]
    ) -> str:
        """Return which layer does not give the result of the bytes in its place; empty if all do.

        Args:
            layers: all of them.
            holders: by window index, the layer whose bytes the window holds.
            moved: positions that were processed in different memory than where they are now.
        """

        def refute() -> str:
            for layer in layers:
                holder = layer if layer.window is None else holders[layer.window.index]
                if not self._gives(layer, holder) or (layer.position in moved and self._unread(layer, holder)):
                    return f"{method_name(layer.module)} reads memory that layer {layer.layer_idx} no longer uses"
            return ""

        return self._attempt(refute)

    def mismatch(self, layers: Sequence[SeriesLayer]) -> str:
        """Return which layer does not give the result of its true weight; empty if all do."""

        def mismatch() -> str:
            for layer in layers:
                if not self._gives(layer, layer):
                    return f"layer {layer.layer_idx} gives a different result than its weight gave when it was loaded"
            return ""

        return self._attempt(mismatch)

    def _attempt(self, look: Callable[[], str]) -> str:
        if self._problem:
            return self._problem
        try:
            return look()
        except Exception as error:  # noqa: BLE001 (as in processed)
            self._problem = f"a layer could not be tried out: {type(error).__name__}: {error}"
            return self._problem

    def _refute_deciding(self, first: SeriesLayer, second: SeriesLayer) -> str:
        mine, theirs = payload_tensors(first.module), payload_tensors(second.module)
        with _exchanged(list(mine.values()), list(theirs.values())):
            if self._gives(first, second) and self._gives(second, first):
                return ""
        return (
            f"{method_name(first.module)} does not give layer {first.layer_idx} the result of layer "
            f"{second.layer_idx} when it is given that layer's tensors: it multiplies with a private copy"
        )

    def _refute_counting(self, layer: SeriesLayer) -> str:
        unread = self._unread(layer, layer)
        return f"{method_name(layer.module)} {unread}: the weight may be elsewhere" if unread else ""

    def _unread(self, layer: SeriesLayer, holder: SeriesLayer) -> str:
        """Disturb one tensor after the other; return what is wrong unless most of their bytes are read.

        ``holder`` is the layer whose weight the tensors hold.
        """
        disturbed_bytes, read_bytes = 0, 0
        unread = []
        for name, tensor in payload_tensors(layer.module).items():
            with _disturbed(tensor) as disturbed:
                if not disturbed:
                    continue
                disturbed_bytes += tensor.nbytes
                if self._gives(layer, holder):
                    unread.append(name)
                else:
                    read_bytes += tensor.nbytes
        if 2 * read_bytes > disturbed_bytes:
            return ""
        return f"does not read {', '.join(unread)}" if unread else "has only zeros to multiply with"

    def _gives(self, layer: SeriesLayer, other: SeriesLayer) -> bool:
        """Return whether ``layer`` now gives the result that ``other`` gave with its true weight."""
        result, expected = self._try_out(layer.module).float(), self._results[other.position].float()
        return bool((result - expected).abs().max() <= TOLERANCE * expected.abs().max())


def method_name(module: nn.Module) -> str:
    """Return the class names of what multiplies a layer."""
    parts = (getattr(module, "quant_method", None), getattr(module, "scheme", None))
    return "/".join(type(part).__name__ for part in parts if part is not None) or type(module).__name__


@contextmanager
def _exchanged(some: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Exchange the contents of tensors inside the block."""
    _exchange(some, others)
    try:
        yield
    finally:
        _exchange(some, others)


def _exchange(some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        kept = one.detach().clone()
        one.data.copy_(other.data)
        other.data.copy_(kept)


@contextmanager
def _disturbed(tensor: Tensor) -> Iterator[bool]:
    """Change a tensor's contents inside the block; yield whether they could be made to differ.

    Its halves are swapped, so that every element stays valid for the kernel: group indices stay indices.
    If that changes nothing, floating-point numbers change their sign.
    """
    kept = tensor.detach().clone()
    size = tensor.element_size()
    before = kept.contiguous().flatten().view(torch.uint8)
    half = tensor.numel() // 2 * size
    after = torch.cat([before[before.numel() - half :], before[half : before.numel() - half], before[:half]])
    if torch.equal(before, after):
        if not tensor.is_floating_point() or not bool(before.any()):
            yield False
            return
        after[size - 1 :: size].bitwise_xor_(0x80)
    tensor.data.copy_(after.view(tensor.dtype).view(tensor.shape))
    try:
        yield True
    finally:
        tensor.data.copy_(kept)
