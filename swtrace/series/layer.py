"""One layer of a series on one rank, and the window that it borrows: module, tensors, and its broadcast's state.

Ownership is simple and total: the source keeps the layer's bytes for ever and only sends them. Any
other rank borrows a window, from the issue of the layer's broadcast until that window is issued again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import increment_version

from swtrace.series import plan
from swtrace.series.payload import PayloadLayout, new_buffer, payload_tensors, version_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.transport import Operation

NEVER = -1
"""No step yet."""
SAMPLES = 64
"""Words of a payload that are compared in each step: 1 us, whatever the payload's size."""
_WORD = torch.int64.itemsize


class SeriesLayer:
    """Everything the forward needs of one layer, prepared beforehand and changed only by its own thread."""

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
        """Group rank that keeps the layer."""
        self.owned = owned

        self.tensors: tuple[Tensor, ...] = ()
        """What the module reads, in payload order; re-pointed when the layer changes its window."""
        self.names: tuple[str, ...] = ()
        """Of the tensors, in the module."""
        self.memory: tuple[tuple[Tensor, int, int | None], ...] = ()
        """Each tensor with the address and the version that it must have whenever it is read."""
        self.sample: Tensor | None = None
        """A few words of the payload, spread over it, where this rank is the source and the host can look at it."""
        self.sampled: Tensor | None = None
        """What they were when the payload was complete."""
        self.kept = False
        """Its tensors lie in memory of their own, because something else holds them."""
        self.in_autograd = False
        """Somebody read a tensor from the window with gradients enabled, and may have kept it for a backward."""
        self.buffer: Tensor | None = None
        """The payload, where this rank is the source."""
        self.window: Window | None = None
        """The window that the layer has (static) or had last (rolling), where it is not."""

        self.operation: Operation | None = None
        """The last broadcast, until somebody waited for it: its buffer must not be used before."""
        self.operation_number = 0
        self.generation = 0
        """Of the window's entry in the window table, for the last broadcast."""
        self.timed = True
        """The instants of the step that the last broadcast is for are recorded."""
        self.issued_ns = 0
        self.issued_step = NEVER
        """Step whose forward issued the last broadcast."""
        self.step = NEVER
        """Step that the last broadcast is for."""
        self.reach_position = 0
        """Position at which the forward was when it issued the last broadcast."""
        self.prefilled = False
        """The bytes came from post-processing: no broadcast belongs to them."""

        self.waited_step = NEVER
        """Last step that waited for the layer."""
        self.wait_ns = 0
        """Instant at which that wait began."""
        self.recorded_step = NEVER
        """Last step whose record was written."""

    def remember_memory(self) -> None:
        """Take the tensors' present place and contents for the right ones."""
        names = {id(tensor): name for name, tensor in payload_tensors(self.module).items()}
        self.names = tuple(names[id(tensor)] for tensor in self.tensors)
        self.memory = tuple((tensor, tensor.data_ptr(), version_of(tensor)) for tensor in self.tensors)
        if self.buffer is not None and self.buffer.device.type == "cpu":
            self.sample = sample(self.buffer)
            self.sampled = self.sample.clone()

    def lie_in(self, window: Window) -> None:
        """Point the tensors into a window."""
        for tensor, view in zip(self.tensors, window.views, strict=True):
            tensor.data = view
        self.memory = tuple(
            (tensor, pointer, version)
            for (tensor, _, version), pointer in zip(self.memory, window.pointers, strict=True)
        )
        self.kept = False

    def outdate(self) -> None:
        """Let autograd refuse a backward with tensors that it kept: their window goes to another broadcast."""
        self.in_autograd = False
        for tensor, _, version in self.memory:
            if version is not None:
                increment_version(tensor)
        self.memory = tuple((tensor, pointer, version_of(tensor)) for tensor, pointer, _ in self.memory)


class Window:
    """One buffer that holds a layer's weight on ranks that are not its source.

    The bytes of one payload and the views into them, made once (or anew, where somebody holds on to a weight:
    :mod:`swtrace.series.keeping`).
    """

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


def sample(payload: Tensor) -> Tensor:
    """Return a view of about :data:`SAMPLES` words of a byte buffer."""
    words = payload[: payload.numel() // _WORD * _WORD].view(torch.int64) if payload.numel() >= _WORD else payload
    return words[:: words.numel() // SAMPLES | 1]  # an odd stride does not stay in one column of a matrix


class WindowPool:
    """All windows of one rank, each allocated when it is first asked for.

    Under ``static`` each position has its window for life; under ``rolling`` every issue takes the next one, whoever it
    is for, so that all ranks roll alike.
    """

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
