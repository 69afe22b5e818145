"""Proof that a layer's matmul reads the tensors it has, and nothing else that differs between layers.

A quant method may leave parameters in place and multiply with a private copy made from them; sharing
such a layer would give wrong results, or save nothing. Reading its code cannot tell, trying does:

- The tensors decide the result: with another layer's in their place, it is that layer's.
- They count: once the elements of a tensor have changed places, the result is another one.
- They may lie elsewhere: in its window a layer gives what it gave before it was moved.

The first two are tried on two layers that nothing has been done to yet, so that a method which fails
leaves every weight where it wants it. What is changed is put back. All of it is local to the rank, a few
small matmuls per layer.
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
"""Multiplies a fixed input with a layer's weight, without waiting; the same input each time."""

TOLERANCE = 1e-2
"""Largest difference between equal results, in units of the largest element: kernels may sum in another order."""


class Proof:
    """Tries the layers of one series on one rank: while they are placed, and once they are."""

    def __init__(self, try_out: TryOut) -> None:
        self._try_out = try_out
        self._results: dict[int, Tensor] = {}
        """By position, of the layer's true weight: each rank has had it in its hands for a moment."""
        self._problem = ""

    def processed(self, layer: SeriesLayer) -> None:
        """Remember what the layer gives, while it is as its own post-processing left it."""
        try:
            self._results[layer.position] = self._try_out(layer.module).detach().clone()
        except Exception as error:  # noqa: BLE001 (a quant method's own; the ranks must go on together)
            self._problem = self._problem or (
                f"{method_name(layer.module)} could not be tried out on layer {layer.layer_idx}: "
                f"{type(error).__name__}: {error}"
            )

    def refute(self, first: SeriesLayer, second: SeriesLayer) -> str:
        """Return why these two layers, where their own post-processing left them, show that none can be shared."""
        return self._attempt(lambda: self._refute_deciding(first, second) or self._refute_counting(first))

    def refute_placed(
        self, layers: Sequence[SeriesLayer], holders: Mapping[int, SeriesLayer], moved: Collection[int]
    ) -> str:
        """Return which layer does not give what the bytes of its place gave before.

        Args:
            layers: all of them.
            holders: by window index, the layer whose bytes it holds.
            moved: positions that were processed in other memory than where they lie now.
        """

        def refute() -> str:
            for layer in layers:
                holder = layer if layer.window is None else holders[layer.window.index]
                if not self._gives(layer, holder) or (layer.position in moved and self._unread(layer, holder)):
                    return f"{method_name(layer.module)} reads memory that layer {layer.layer_idx} no longer uses"
            return ""

        return self._attempt(refute)

    def mismatch(self, layers: Sequence[SeriesLayer]) -> str:
        """Return which layer does not give what its true weight gave; empty where all do."""

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
        """Disturb one tensor after the other; return what is wrong unless those that make up most bytes are read.

        ``holder`` is the layer whose weight the tensors hold.
        """
        told, read = 0, 0
        unread = []
        for name, tensor in payload_tensors(layer.module).items():
            with _disturbed(tensor) as disturbed:
                if not disturbed:
                    continue
                told += tensor.nbytes
                if self._gives(layer, holder):
                    unread.append(name)
                else:
                    read += tensor.nbytes
        if 2 * read > told:
            return ""
        return f"does not read {', '.join(unread)}" if unread else "has only zeros to multiply with"

    def _gives(self, layer: SeriesLayer, other: SeriesLayer) -> bool:
        """Whether ``layer`` now gives what ``other`` gave with its true weight."""
        result, expected = self._try_out(layer.module).float(), self._results[other.position].float()
        return bool((result - expected).abs().max() <= TOLERANCE * expected.abs().max())


def method_name(module: nn.Module) -> str:
    """Name what multiplies a layer, as its author named it."""
    parts = (getattr(module, "quant_method", None), getattr(module, "scheme", None))
    return "/".join(type(part).__name__ for part in parts if part is not None) or type(module).__name__


@contextmanager
def _exchanged(some: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Exchange the contents of tensors for a while."""
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
    """Give a tensor other contents for a while; yields whether it has any that differ.

    Its halves change places, so that every element is one that the kernel knows: group indices stay indices.
    Where that changes nothing, floating-point numbers change their sign.
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
