"""Proof that a layer's matmul reads its window, and nothing else that differs between layers.

A quant method may leave parameters in place and multiply with a private copy made from them; sharing
such a layer would give wrong results, or save nothing. Reading its code cannot tell, trying does:

- Whatever lies in a window decides the result: another layer's bytes in it give that layer's result.
- Every tensor counts: once its elements have changed places, the result is another one.

What is changed is put back. All of it is local to the rank, a few small matmuls per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.layer import SeriesLayer
    from swtrace.series.payload import PayloadLayout, TensorPlace
    from swtrace.series.placing import Placement

TryOut = Callable[["nn.Module"], "Tensor"]
"""Multiplies a fixed input with a layer's weight, without waiting; the same input each time."""

TOLERANCE = 1e-2
"""Largest difference between equal results, in units of the largest element: kernels may sum in another order."""

_CHUNK = 1 << 20
"""Bytes that are exchanged at a time, so that no second payload is ever held."""


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

    def refute(self, layers: Sequence[SeriesLayer], placement: Placement) -> str:
        """Return why the placed layers cannot be shared; empty where they can. The weights are as they were."""
        if self._problem:
            return self._problem
        try:
            return self._refute(layers, placement)
        except Exception as error:  # noqa: BLE001 (as above)
            return f"{method_name(layers[0].module)} could not be tried out: {type(error).__name__}: {error}"

    def mismatch(self, layers: Sequence[SeriesLayer]) -> str:
        """Return which layer does not give what its true weight gave; empty where all do."""
        if self._problem:
            return self._problem
        for layer in layers:
            if not self._gives(layer, layer):
                return f"layer {layer.layer_idx} gives another result than its weight gave when it was loaded"
        return ""

    def _refute(self, layers: Sequence[SeriesLayer], placement: Placement) -> str:
        received = [layer for layer in layers if layer.window is not None]
        for layer in received:
            holder = placement.holders[layer.window.index]  # type: ignore[union-attr]  # chosen above
            if not self._gives(layer, holder):
                return _private(layer, holder)
        subject = received[0]
        window = subject.window.buffer  # type: ignore[union-attr]  # as above
        own = next((layer for layer in layers if layer.owned), None)
        if own is not None and own.buffer is not None:
            with _exchanged(window, own.buffer):
                if not self._gives(subject, own):
                    return _private(subject, own)
        return self._refute_reading(subject, window, placement.layout)

    def _refute_reading(self, layer: SeriesLayer, buffer: Tensor, layout: PayloadLayout) -> str:
        """Disturb one tensor after the other: those that make up most of the bytes must be read."""
        before = self._try_out(layer.module)
        told, read = 0, 0
        unread = []
        for place in layout.places:
            with _disturbed(buffer, place) as disturbed:
                if not disturbed:
                    continue
                told += place.nbytes
                if _same(self._try_out(layer.module), before):
                    unread.append(place.name)
                else:
                    read += place.nbytes
        if 2 * read > told:
            return ""
        what = f"does not read {', '.join(unread)} of the window" if unread else "has a weight of nothing but zeros"
        return f"{method_name(layer.module)} {what}: what it multiplies with lies elsewhere"

    def _gives(self, layer: SeriesLayer, other: SeriesLayer) -> bool:
        """Whether ``layer`` now gives what ``other`` gave with its true weight."""
        return _same(self._try_out(layer.module), self._results[other.position])


def method_name(module: nn.Module) -> str:
    """Name what multiplies a layer, as its author named it."""
    parts = (getattr(module, "quant_method", None), getattr(module, "scheme", None))
    return "/".join(type(part).__name__ for part in parts if part is not None) or type(module).__name__


def _private(layer: SeriesLayer, other: SeriesLayer) -> str:
    return (
        f"{method_name(layer.module)} gives layer {layer.layer_idx} another result than layer {other.layer_idx} "
        f"with the same bytes in the window: it multiplies with a private copy"
    )


def _same(one: Tensor, other: Tensor) -> bool:
    difference = (one.float() - other.float()).abs().max()
    return bool(difference <= TOLERANCE * other.float().abs().max())


@contextmanager
def _exchanged(one: Tensor, other: Tensor) -> Iterator[None]:
    """Exchange the contents of two byte buffers for a while."""
    _exchange(one, other)
    try:
        yield
    finally:
        _exchange(one, other)


@contextmanager
def _disturbed(buffer: Tensor, place: TensorPlace) -> Iterator[bool]:
    """Give a tensor other bytes for a while; yields whether that makes it another tensor.

    Its halves change places, so that every element is one that the kernel knows: group indices stay indices.
    Where that changes nothing, floating-point numbers change their sign.
    """
    size = place.dtype.itemsize
    tensor = buffer[place.offset : place.offset + place.nbytes]
    half = place.nbytes // size // 2 * size
    first, last = tensor[:half], tensor[place.nbytes - half :]
    if not torch.equal(first, last):
        with _exchanged(first, last):
            yield True
    elif place.dtype.is_floating_point and bool(tensor.any()):
        signs = tensor[size - 1 :: size]
        signs.bitwise_xor_(0x80)
        try:
            yield True
        finally:
            signs.bitwise_xor_(0x80)
    else:
        yield False


def _exchange(one: Tensor, other: Tensor) -> None:
    for begin in range(0, one.numel(), _CHUNK):
        mine, theirs = one[begin : begin + _CHUNK], other[begin : begin + _CHUNK]
        kept = mine.clone()
        mine.copy_(theirs)
        theirs.copy_(kept)
