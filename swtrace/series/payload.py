"""A layer's weight as one contiguous run of bytes.

A quantised linear is a *set* of tensors (weights, scales, zero points) of several dtypes, shapes and
strides. One broadcast moves them all. Each has its place in one byte buffer, and the parameters are
views into it, so that nothing is packed or unpacked while the model runs. The transport moves bytes and
need not know the dtypes; gloo would refuse float8.

If the ownership check is on, a tag follows in the same buffer, so that it moves with the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: a cache line, and the alignment that torch gives to a separate tensor."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor's place in the payload."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes from the beginning of the payload."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def __str__(self) -> str:
        """Return the tensor for messages, e.g. ``weight bfloat16[256, 64] stride (1, 256)``."""
        stride = "" if self.stride == _contiguous_stride(self.shape) else f" stride {self.stride}"
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}{list(self.shape)}{stride}"


@dataclass(frozen=True, slots=True)
class PayloadLayout:
    """Each tensor's place in a layer's payload; the same for all layers and ranks."""

    places: tuple[TensorPlace, ...]
    tagged: bool = False
    """Whether a tag follows the tensors (see :mod:`swtrace.series.ownership`)."""

    @property
    def nbytes(self) -> int:
        """Bytes of one layer's tensors, without the tag."""
        return self.places[-1].offset + self.places[-1].nbytes if self.places else 0

    @property
    def tag_bytes(self) -> int:
        """Bytes of a buffer after the tensors, for the aligned tag; 0 without one."""
        return _aligned(self.nbytes) + ALIGNMENT - self.nbytes if self.tagged else 0

    def __str__(self) -> str:
        """Return the tensors for messages."""
        return ", ".join(map(str, self.places)) or "no tensors"

    @classmethod
    def of(cls, tensors: dict[str, Tensor], *, tagged: bool = False) -> PayloadLayout:
        """Lay out ``tensors``, in their order, each aligned to :data:`ALIGNMENT`."""
        places = []
        end = 0
        for name, tensor in tensors.items():
            offset = _aligned(end)
            shape = tuple(tensor.shape)
            stride = tuple(tensor.stride()) if _dense(tensor) else _contiguous_stride(shape)
            place = TensorPlace(name, shape, stride, tensor.dtype, offset)
            places.append(place)
            end = offset + place.nbytes
        return cls(tuple(places), tagged)

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """Return one view into ``buffer`` per tensor, with its shape, stride and dtype."""
        return tuple(
            buffer[place.offset : place.offset + place.nbytes].view(place.dtype).as_strided(place.shape, place.stride)
            for place in self.places
        )

    def tag(self, buffer: Tensor) -> Tensor:
        """Return the one int64 in ``buffer`` that is its tag; the layout must be tagged."""
        begin = buffer.numel() - ALIGNMENT
        return buffer[begin : begin + torch.int64.itemsize].view(torch.int64)


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's parameters and buffers by name, those of its submodules included."""
    return dict(layer.named_parameters()) | dict(layer.named_buffers())


def payload_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that make up a layer's weight: its non-empty parameters and buffers, by name."""
    return {name: tensor for name, tensor in own_tensors(layer).items() if tensor.numel()}


def unsuitable(tensor: Tensor) -> str:
    """Return why a tensor's values are not plain, writable memory; empty if they are."""
    kind = type(tensor)
    problem = ""
    if is_lazy(tensor):
        problem = "has no shape yet; initialise it before the layer is registered"
    elif kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        absence = getattr(tensor, "_absence", "")  # of an AbsentTensor
        problem = f"has no values: {absence}" if absence else f"is a {kind.__name__}, which has no memory of its own"
        problem += "; load it again, by assignment" if absence else "; register plain tensors"
    elif tensor.is_nested or tensor.layout is not torch.strided:
        problem = f"has layout {tensor.layout}; register dense tensors"
    elif tensor.is_quantized:
        problem = f"is a {tensor.dtype} tensor, whose scale is not part of its memory; register plain tensors"
    elif tensor.is_inference() and not torch.is_inference_mode_enabled():
        problem = (
            "was made in inference mode and cannot be used outside of it; make it under torch.no_grad(), or register "
            "and post-process it in inference mode"
        )
    elif tensor.is_conj() or tensor.is_neg():
        problem = "is a lazily conjugated or negated view; resolve it with resolve_conj() or resolve_neg()"
    return problem


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None for one made in inference mode, where torch does not count."""
    try:
        return int(tensor._version)  # noqa: SLF001
    except RuntimeError:
        return None


def new_buffer(layout: PayloadLayout, device: torch.device) -> Tensor:
    """Return an uninitialised byte buffer for one payload; a tag is 0, for no layer."""
    buffer = torch.empty(layout.nbytes + layout.tag_bytes, dtype=torch.uint8, device=device)
    buffer[layout.nbytes :].zero_()
    return buffer


def packed(layout: PayloadLayout, tensors: dict[str, Tensor]) -> Tensor:
    """Return the payload of ``tensors`` as one byte buffer, of which they are views.

    The storage of a single tensor that fills it is used as it is. Otherwise the bytes are copied once, and
    each tensor's ``data`` is pointed at its place, which releases the old storage.
    """
    if len(tensors) == 1 and not layout.tagged:
        (tensor,) = tensors.values()
        if _dense(tensor) and tensor.untyped_storage().nbytes() == layout.nbytes:
            return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    buffer = new_buffer(layout, next(iter(tensors.values())).device)
    move_into(layout.views(buffer), tensors)
    return buffer


def move_into(views: tuple[Tensor, ...], tensors: dict[str, Tensor]) -> None:
    """Copy each tensor into its view, unless it is there already, and point the tensor at the view."""
    for view, tensor in zip(views, tensors.values(), strict=True):
        if tensor.data_ptr() != view.data_ptr():
            view.copy_(tensor.detach())
        tensor.data = view


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride = []
    step = 1
    for length in reversed(shape):
        stride.append(step)
        step *= max(length, 1)
    return tuple(reversed(stride))


def _dense(tensor: Tensor) -> bool:
    """Return whether the tensor's elements fill one run of memory, each exactly once, in any order."""
    step = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length == 1:
            continue
        if stride != step:
            return False
        step *= length
    return True
