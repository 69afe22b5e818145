"""Pull on a device: layers stay in their owners' device memory, and each rank copies them on its prefetch stream.

Start-up is as in host memory: what was loaded goes through files. After it, they are removed, because nobody can join
later: a device's memory ends with its process. For the same reason every step begins with a look at the owners. An
owner that has ended is an error, as a rank that ended is for a broadcast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swtrace.errors import TransportError
from swtrace.series.device.device_circle import DeviceCircle
from swtrace.series.device.device_transport import DeviceTransport
from swtrace.series.pull.publication import Publication
from swtrace.series.transport import RECEIVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from swtrace.series.device.accelerator import Device
    from swtrace.series.layer import SeriesLayer
    from swtrace.series.pull.ipc_mover import IpcMover
    from swtrace.series.transport import MovedLayer


class DevicePullTransport(DeviceTransport):
    """One rank's end of a pull series whose layers are on a device."""

    def __init__(self, device: Device, mover: IpcMover, num_layers: int) -> None:
        """Make the prefetch stream, and join the other ranks.

        Args:
            device: holds layers and windows.
            mover: copies the bytes; its folder is joined here.
            num_layers: L.

        Raises:
            TransportError: the folder cannot be used, or this rank has been in it before.
        """
        super().__init__(device, mover, num_layers)
        self.queue = RECEIVER
        self._pulls = mover
        publication = Publication(mover.folder, mover.own)
        self._publication = publication
        mover.folder.join(returns=False)

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` from what the layer's owner loaded; blocking."""
        self._publication.broadcast(buffer, layer)

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:
        """Return the payload, which the other ranks can open from now on."""
        self._pulls.publish(payload, layer)
        return payload

    def circle(self, where: str, layers: Sequence[SeriesLayer], *arguments: Any, **options: Any) -> DeviceCircle:  # type: ignore[override]
        """Remove what this rank loaded, open the other ranks' layers and return what runs the steps."""
        for layer in layers:
            if layer.owned:
                self._pulls.folder.remove(self._publication.last(layer))
        return DevicePullCircle(self._pulls, where, layers, *arguments, **options)

    def close(self) -> None:
        """Finish the copies under way, and leave the folder."""
        with self.device.on(self.stream):
            self._mover.close()


class DevicePullCircle(DeviceCircle):
    """Runs the steps, each of which begins with a look at the owners."""

    def __init__(
        self, mover: IpcMover, where: str, layers: Sequence[SeriesLayer], *arguments: Any, **options: Any
    ) -> None:
        """Open the other ranks' layers; see :class:`~swtrace.series.device.device_circle.DeviceCircle`.

        Raises:
            PeerLostError: their owner has ended.
        """
        super().__init__(where, layers, *arguments, **options)
        self._mover = mover
        self._first = {layer.source: layer for layer in reversed(layers) if not layer.owned}
        """By owner, the first of its layers."""
        for layer in layers:
            if not layer.owned:
                try:
                    mover.open(layer)
                except RuntimeError as error:
                    self._lose(layer, error)

    def announce_graph(self) -> None:
        """Announce a graph if all owners live; see :class:`~swtrace.series.device.device_circle.DeviceCircle`.

        Raises:
            PeerLostError: one has ended.
        """
        super().announce_graph()
        if not self._in_step:
            self._require_owners()

    def _open_step(self) -> None:
        self._require_owners()
        super()._open_step()

    def _require_owners(self) -> None:
        """Raise PeerLostError if an owner has ended."""
        folder = self._mover.folder
        ended = [owner for owner in self._first if not folder.lives(owner)]
        if ended:
            # The death of one makes others end, too.
            owner = next(filter(folder.died, ended), ended[0])
            self._lose(
                self._first[owner],
                TransportError(
                    f"rank {folder.ranks[owner]} has ended, and its layers were in its device's memory; restart all "
                    f"ranks of the series"
                ),
            )

    def close(self) -> None:
        """End the series; from now on owners may end."""
        self._first.clear()
        super().close()
