"""Broadcasts at start-up, through files that every rank reads, whatever memory its layers lie in.

The bytes of a layer as it was loaded are a file in the share folder, written once by its owner. It stays there, so that
a rank may start later than the others.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

import torch

from swtrace.errors import TransportError

if TYPE_CHECKING:
    import mmap

    from torch import Tensor

    from swtrace.series.transport import MovedLayer
    from swtrace.trace.share_folder import ShareFolder


class Publication:
    """One rank's end of these broadcasts."""

    def __init__(self, folder: ShareFolder, own: int) -> None:
        """Begin before the first broadcast.

        Args:
            folder: where the files are.
            own: this rank's index in the group.
        """
        self._folder = folder
        self._own = own
        self._broadcasts: Counter[int] = Counter()
        """So far, by position."""

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` from the bytes that the layer's owner publishes; blocking.

        Raises:
            TransportError: the owner does not publish them in time, or this owner published others before.
        """
        folder, before = self._folder, self._broadcasts[layer.position]
        self._broadcasts[layer.position] += 1
        name = f"raw-{layer.position}-{before}"
        if layer.source == self._own:
            self.publish(name, buffer)
            return
        # In this order, because an owner publishes what it loaded before what it stores.
        if not before and folder.has(stored(layer)) and not folder.has(name):
            raise TransportError(
                "this rank starts while others already run, but its layers cannot be processed again, because "
                "processing changed them: restart all replicas"
            )
        folder.await_files([name], [layer.source])
        copy(buffer, tensor_of(folder.map(name, buffer.nbytes, writable=False)))

    def last(self, layer: MovedLayer) -> str:
        """Return the name of the file of the layer's last broadcast."""
        return f"raw-{layer.position}-{self._broadcasts[layer.position] - 1}"

    def publish(self, name: str, payload: Tensor) -> Tensor:
        """Return the shared bytes of a payload; after a restart, those that were published before."""
        if self._folder.has(name):
            shared = tensor_of(self._folder.map(name, payload.nbytes, writable=True))
            if not torch.equal(shared, payload.cpu()):
                raise TransportError(
                    "this rank loaded other weights than before its restart, which the others still use: "
                    "restart all replicas to change the checkpoint"
                )
            return shared
        return tensor_of(self._folder.publish(name, payload.nbytes, lambda mapping: copy(tensor_of(mapping), payload)))

    def shared(self, name: str, payload: Tensor) -> Tensor | None:
        """Return the bytes of a file if they are exactly these, in host memory; else None."""
        try:
            found = tensor_of(self._folder.map(name, payload.nbytes, writable=True))
        except TransportError:  # another size
            return None
        return found if torch.equal(found, payload) else None


def stored(layer: MovedLayer) -> str:
    """Return the name of the file that stands for an owned layer in its place."""
    return f"layer-{layer.position}"


def tensor_of(mapping: mmap.mmap) -> Tensor:
    """Return the bytes of a mapping, which lives as long as they do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about bytes that cannot be written to
        return torch.frombuffer(mapping, dtype=torch.uint8)


def copy(target: Tensor, source: Tensor) -> None:
    """Copy bytes, within a memory or between two; blocking if one of them is the host's."""
    with torch.inference_mode():  # in which every tensor may be written to
        target.copy_(source)
