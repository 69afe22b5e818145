"""One layer of a series on one rank, with its broadcast's state, and the window that it borrows.

The source keeps the layer's bytes forever and only sends them. Every other rank borrows a window, from
the issue of the layer's broadcast until that window is issued again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import increment_version

from swtrace import placement
from swtrace.series.payload import PayloadLayout, new_buffer, payload_tensors, version_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.transport import Operation

NEVER = -1
"""No step yet."""
SAMPLES = 64
"""Words of a payload that are compared in each step. This takes 1 us, whatever the payload's size."""
_WORD = torch.int64.itemsize


class SeriesLayer:
    """Everything that the forward needs of one layer, prepared in advance and changed only by its thread."""

    __slots__ = (
        "buffer",
        "generation",
        "in_autograd",
        "issued_ns",
        "issued_step",
        "kept",
        "layer_idx",
        "memory",
        "module",
        "names",
        "operation",
        "operation_number",
        "owned",
        "position",
        "prefilled",
        "reach_position",
        "recorded_step",
        "sample",
        "sampled",
        "source",
        "step",
        "tensors",
        "timed",
        "wait_ns",
        "waited_step",
        "window",
    )

    def __init__(self, position: int, layer_idx: int, module: nn.Module, source: int, *, owned: bool) -> None:
        self.position = position
        self.layer_idx = layer_idx
        self.module = module
        self.source = source
        """Source rank, numbered in the group."""
        self.owned = owned

        self.tensors: tuple[Tensor, ...] = ()
        """The tensors that the module reads, in payload order; re-pointed when the layer changes its window."""
        self.names: tuple[str, ...] = ()
        """The tensors' names in the module."""
        self.memory: tuple[tuple[Tensor, int, int | None], ...] = ()
        """Each tensor, with the address and version that it must have when it is read."""
        self.sample: Tensor | None = None
        """A few words spread over the payload, if this rank is the source and the payload is in host memory."""
        self.sampled: Tensor | None = None
        """Their values when the payload was complete."""
        self.kept = False
        """Whether its tensors have memory of their own, because something else holds them."""
        self.in_autograd = False
        """Whether a tensor was read from the window with gradients enabled, and may be kept for a backward."""
        self.buffer: Tensor | None = None
        """The payload, if this rank is the source."""
        self.window: Window | None = None
        """The window that the layer has (static) or had last (rolling), if this rank is not the source."""

        self.operation: Operation | None = None
        """The last broadcast, until it was waited for; its buffer must not be used earlier."""
        self.operation_number = 0
        self.generation = 0
        """Generation of the window table's entry for the last broadcast."""
        self.timed = True
        """Whether the last broadcast belongs to a timed step."""
        self.issued_ns = 0
        self.issued_step = NEVER
        """Step whose forward issued the last broadcast."""
        self.step = NEVER
        """Step that the last broadcast is for."""
        self.reach_position = 0
        """Position of the forward when it issued the last broadcast."""
        self.prefilled = False
        """Whether the bytes came from post-processing, without a broadcast."""

        self.waited_step = NEVER
        """Last step that waited for the layer."""
        self.wait_ns = 0
        """Instant at which that wait began."""
        self.recorded_step = NEVER
        """Last step whose record was written."""

    def remember_memory(self) -> None:
        """Remember the tensors' present addresses and contents, as those that they must keep."""
        names = {id(tensor): name for name, tensor in payload_tensors(self.module).items()}
        self.names = tuple(names[id(tensor)] for tensor in self.tensors)
        self.memory = tuple((tensor, tensor.data_ptr(), version_of(tensor)) for tensor in self.tensors)
        if self.buffer is not None and self.buffer.device.type == "cpu":
            self.sample = sample(self.buffer)
            self.sampled = self.sample.clone()

    def point_into(self, window: Window) -> None:
        """Point the tensors into a window."""
        for tensor, view in zip(self.tensors, window.views, strict=True):
            tensor.data = view
        self.memory = tuple(
            (tensor, pointer, version)
            for (tensor, _, version), pointer in zip(self.memory, window.pointers, strict=True)
        )
        self.kept = False

    def outdate(self) -> None:
        """Make autograd refuse a backward with tensors that it kept, because their window is reused."""
        self.in_autograd = False
        for tensor, _, version in self.memory:
            if version is not None:
                increment_version(tensor)
        self.memory = tuple((tensor, pointer, version_of(tensor)) for tensor, pointer, _ in self.memory)


class Window:
    """One buffer that holds a layer's weight on ranks that are not its source.

    The bytes of one payload and the views into them. They are made once, or again if something holds a weight; see
    :mod:`swtrace.series.keeping`.
    """

    __slots__ = ("buffer", "index", "layout", "occupant", "pointers", "tag", "views")

    def __init__(self, index: int, layout: PayloadLayout, device: torch.device) -> None:
        self.index = index
        self.layout = layout
        self.occupant: SeriesLayer | None = None
        """The layer that the window holds, or will hold once its broadcast is complete."""
        self._use_memory(new_buffer(layout, device))

    def _use_memory(self, buffer: Tensor) -> None:
        layout = self.layout
        self.buffer: Tensor = buffer
        self.views: tuple[Tensor, ...] = layout.views(buffer)
        self.pointers = tuple(view.data_ptr() for view in self.views)
        self.tag: Tensor | None = layout.tag(buffer) if layout.tagged else None

    def renew(self) -> None:
        """Leave the present memory to its holders, and take new memory with the same tag."""
        tag = self.tag
        with torch.inference_mode(self.buffer.is_inference()):
            self._use_memory(new_buffer(self.layout, self.buffer.device))
        if self.tag is not None and tag is not None:
            self.tag.copy_(tag)


def sample(payload: Tensor) -> Tensor:
    """Return a view of about :data:`SAMPLES` words of a byte buffer."""
    words = payload[: payload.numel() // _WORD * _WORD].view(torch.int64) if payload.numel() >= _WORD else payload
    return words[:: words.numel() // SAMPLES | 1]  # an odd stride does not stay in one column of a matrix


class WindowPool:
    """All windows of one rank, each allocated when first requested.

    Under ``static``, each position has a fixed window. Under ``rolling``, every issue takes the next window, even for
    a layer that this rank owns, so that all ranks roll alike.
    """

    def __init__(self, policy: str, num_layers: int, prefetch_step: int, owned: frozenset[int]) -> None:
        self.rolling = policy == "rolling"
        self._prefetch_step = prefetch_step
        self._static = () if self.rolling else placement.static_windows(num_layers, prefetch_step, owned)
        self.count = placement.rolling_window_count(prefetch_step) if self.rolling else max(self._static) + 1
        self._windows: list[Window | None] = [None] * self.count

    def landing(self, position: int) -> int:
        """Return the window that receives ``position`` during post-processing.

        The first ``k`` positions are placed last, and stay in the windows where the first forward reads them.
        """
        return min(position, self._prefetch_step) if self.rolling else self._static[position]

    def window(self, index: int, layout: PayloadLayout, device: torch.device) -> Window:
        """Return a window, allocated on the first call."""
        window = self._windows[index]
        if window is None:
            window = self._windows[index] = Window(index, layout, device)
        return window

    def take_out(self, index: int) -> Window:
        """Remove and return an allocated window whose layout is not the final one."""
        window = self._windows[index]
        if window is None:
            raise KeyError(index)
        self._windows[index] = None
        return window

    def complete(self, layout: PayloadLayout, device: torch.device) -> tuple[Window, ...]:
        """Return all windows, allocating those that are missing."""
        return tuple(self.window(index, layout, device) for index in range(self.count))
