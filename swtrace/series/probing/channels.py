"""What moves layers in a probe: broadcasts of gloo, and the copier that pulls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from swtrace.errors import TransportError
from swtrace.series.pull.copier import Copier
from swtrace.series.pull.publication import Publication, tensor_of
from swtrace.series.torch_transport import TorchTransport
from swtrace.trace.identity import BROADCAST, PULL
from swtrace.trace.share_folder import ShareFolder, folder_name

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.group import Group
    from swtrace.series.transport import OnReady, Operation
    from swtrace.settings import Settings

_REGION = 16 << 20
"""Sources read from at least as much memory in turn, because the layers of a model are not in a cache either."""


class Memory:
    """What a rank sends from, and what it receives into."""

    def __init__(self, own: int, largest: int, concurrent: int) -> None:
        """Fill the layers with the number of the rank.

        Args:
            own: number of this rank in the group.
            largest: bytes of the largest transfer.
            concurrent: the most transfers that are under way at once.
        """
        self.layers = torch.full((max(largest, _REGION),), own % 251, dtype=torch.uint8)
        self.windows = torch.full((concurrent * largest,), 255, dtype=torch.uint8)


class Channel(Protocol):
    """One transport between the ranks, made for transfers of this probe."""

    name: str
    family: str

    def source(self, index: int) -> int:
        """Return the group rank that is the source of this rank's transfer with that number."""

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a transfer of a block, of which ``concurrent`` are under way at once."""

    def close(self) -> None:
        """Release the transport."""


@dataclass(frozen=True, slots=True)
class _Moved:
    """A layer, as far as a transport needs it."""

    position: int
    source: int


class BroadcastChannel:
    """Broadcasts of a gloo communicator of its own."""

    family = BROADCAST

    def __init__(self, group: Group, memory: Memory, timeout_s: float) -> None:
        """Make the communicator; all ranks must do so in the same order."""
        self._transport = TorchTransport(group, description="swtrace:probe", timeout_s=timeout_s)
        self.name = self._transport.name
        self.gather = self._transport.gather
        self._own, self._world = group.rank_in_group, group.world_size
        self._memory = memory

    def source(self, index: int) -> int:
        """Return the rank whose turn it is."""
        return index % self._world

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a broadcast from this rank's layers, or into one of its windows."""
        source = self.source(index)
        if source == self._own:
            buffer = _slot(self._memory.layers, nbytes, index)
        else:
            buffer = _slot(self._memory.windows, nbytes, index % concurrent)
        return self._transport.issue(buffer, _Moved(0, source), on_ready)

    def close(self) -> None:
        """Release the communicator."""
        self._transport.close()


class PullChannel:
    """Copies from the memory of the other ranks of this host."""

    name = family = PULL

    def __init__(self, folder: ShareFolder, group: Group, memory: Memory) -> None:
        """Publish this rank's layers. :meth:`open` follows, once every rank has done so.

        Raises:
            TransportError: the folder cannot be used, or has no room.
        """
        self._folder = folder
        self._own, self._world = group.rank_in_group, group.world_size
        self._copier: Copier | None = None
        self._origins: dict[int, Tensor] = {}
        folder.join()
        self._memory = memory
        Publication(folder, self._own).publish(f"layer-{self._own}", memory.layers)

    def open(self) -> None:
        """Map the other ranks' layers and start the copier.

        Raises:
            TransportError: a rank has published none.
        """
        for rank in range(self._world):
            if rank != self._own:
                mapping = self._folder.map(f"layer-{rank}", self._memory.layers.nbytes, writable=False)
                self._origins[rank] = tensor_of(mapping)
        self._copier = Copier("swtrace-copier probe", lambda: None)

    def source(self, index: int) -> int:
        """Return the other rank whose turn it is."""
        return (self._own + 1 + index % (self._world - 1)) % self._world

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a copy into one of this rank's windows."""
        origin = _slot(self._origins[self.source(index)], nbytes, index)
        buffer = _slot(self._memory.windows, nbytes, index % concurrent)
        return self._copier.copy(buffer, origin, on_ready)  # type: ignore[union-attr]

    def close(self) -> None:
        """Finish the copies and leave the folder."""
        if self._copier is not None:
            self._copier.close()
        self._origins.clear()
        self._folder.leave()


def _slot(memory: Tensor, nbytes: int, index: int) -> Tensor:
    begin = index % (memory.nbytes // nbytes) * nbytes
    return memory[begin : begin + nbytes]


def pull_channel(
    group: Group, memory: Memory, settings: Settings, gather: Callable[[object], list[object]], *, run: str
) -> PullChannel | str:
    """Return a channel that pulls; on all ranks, the same reason why there is none."""
    ranks = tuple(group.ranks)
    channel, problem = None, ""
    try:
        path = settings.ring_directory() / folder_name(f"probe-{run}", "probe", ranks)
        channel = PullChannel(ShareFolder(path, ranks, group.rank_in_group, settings.timeout_s), group, memory)
    except TransportError as error:
        problem = str(error)
    problems = [str(each) for each in gather(problem) if each]
    if not problems and channel is not None:
        channel.open()
        return channel
    if channel is not None:
        channel.close()
    return problems[0]
