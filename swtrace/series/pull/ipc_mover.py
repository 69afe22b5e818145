"""Copies from layers in the memory of another process's device, which this process has opened by a handle.

A copy is work on the reader's stream alone. On the owner nothing runs, and it waits for nothing. But a device's memory
ends with its process. A handle that outlives it is worthless, so a rank that ended cannot return to those that opened
its layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from swtrace.series.pull.publication import copy, stored
from swtrace.series.transport import PULL, RECEIVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from swtrace.series.transport import MovedLayer
    from swtrace.trace.share_folder import ShareFolder


class SharedMemory(Protocol):
    """A device's memory, as far as other processes may read it."""

    def settle(self) -> None:
        """Block the host until the current stream has done its work."""

    def export(self, payload: Tensor) -> object:
        """Return a picklable handle of a payload, which must live as long as its readers."""

    def open(self, handle: Any) -> Tensor:
        """Return the payload of another process; raise RuntimeError if its memory is gone."""

    def copy(self, buffer: Tensor, origin: Tensor) -> None:
        """Enqueue a copy of an opened payload on the current stream, which may be under capture."""


class CudaMemory:
    """CUDA IPC, as torch offers it: a handle is of a whole segment of its allocator, and knows the payload's place."""

    copy = staticmethod(copy)

    def __init__(self, device: torch.device) -> None:
        """Use one device.

        Args:
            device: this process's, onto which everything is opened, wherever its owner has it.
        """
        self._device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)

    def settle(self) -> None:
        """Block the host until the current stream has done its work."""
        torch.cuda.current_stream(self._device).synchronize()

    def export(self, payload: Tensor) -> object:
        """Return a handle."""
        from torch.multiprocessing.reductions import reduce_tensor

        _, arguments = reduce_tensor(payload)  # type: ignore[no-untyped-call]
        return arguments

    def open(self, handle: Any) -> Tensor:
        """Return the payload behind a handle."""
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        arguments = list(handle)
        # Processes number their devices differently. A copy between two devices of torch's would run on the owner's.
        arguments[_STORAGE_DEVICE] = self._device.index
        payload: Tensor = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]
        return payload


_STORAGE_DEVICE = 6
"""Among the arguments of ``rebuild_cuda_tensor``."""


class IpcMover:
    """Copies layers from their owners' memory, in the order of the current stream."""

    name = PULL
    rendezvous = RECEIVER

    def __init__(self, memory: SharedMemory, folder: ShareFolder, own: int) -> None:
        """Begin without a layer.

        Args:
            memory: of the device.
            folder: joined; it holds the handles.
            own: this rank's index in the group.
        """
        self.folder = folder
        self.own = own
        self._memory = memory
        self._origins: dict[int, Tensor] = {}
        """By position, the owner's bytes."""
        self.gather: Callable[[object], list[object]] = folder.exchange

    def publish(self, payload: Tensor, layer: MovedLayer) -> None:
        """Let the other ranks open a layer of this rank."""
        self._memory.settle()
        self.folder.write(stored(layer), self._memory.export(payload))

    def open(self, layer: MovedLayer) -> None:
        """Open another rank's layer, which it has published.

        Raises:
            RuntimeError: its memory is gone.
        """
        self._origins[layer.position] = self._memory.open(self.folder.read(stored(layer)))

    def origin(self, layer: MovedLayer) -> Tensor:
        """Return an opened layer."""
        return self._origins[layer.position]

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Enqueue the copy of another rank's layer; do nothing for one of this rank."""
        if layer.source != self.own:
            self._memory.copy(buffer, self.origin(layer))

    def close(self) -> None:
        """Finish the copies on the current stream, close the layers, and leave the folder."""
        try:
            if self._origins:
                self._memory.settle()
        finally:
            self._origins.clear()
            self.folder.leave()
