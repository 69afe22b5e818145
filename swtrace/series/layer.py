"""One layer of a series on one rank: its module, its tensors, and its broadcast's state.

Ownership is simple and total: the source keeps the layer's bytes for ever and only sends them. Any
other rank borrows a window, from the issue of the layer's broadcast until that window is issued again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtrace.series.payload import payload_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.pool import Window
    from swtrace.series.transport import Operation

NEVER = -1
"""No step yet."""


class SeriesLayer:
    """Everything the forward needs of one layer, prepared beforehand and changed only by its own thread."""

    __slots__ = (
        "buffer",
        "generation",
        "issued_ns",
        "issued_step",
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
        "source",
        "step",
        "tensors",
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
        self.buffer: Tensor | None = None
        """The payload, where this rank is the source."""
        self.window: Window | None = None
        """The window that the layer has (static) or had last (rolling), where it is not."""

        self.operation: Operation | None = None
        """The last broadcast, until somebody waited for it: its buffer must not be used before."""
        self.operation_number = 0
        self.generation = 0
        """Of the window's entry in the window table, for the last broadcast."""
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
        self.memory = tuple(
            (tensor, tensor.data_ptr(), None if tensor.is_inference() else tensor._version)  # noqa: SLF001
            for tensor in self.tensors
        )
