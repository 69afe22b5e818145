"""Pull on one host: layers lie in shared memory, and each rank copies them into its own windows.

Start-up is the same sequence of exchanges and broadcasts as with every transport, but through files that stay in the
share folder. After that, no rank depends on another: they may run different numbers of steps, idle, or leave.

An owner's bytes are written once. Where post-processing leaves them as they were loaded, one file holds both.
Otherwise the loaded bytes are removed once every rank has processed them, and a rank that restarts afterwards is
refused, because it cannot repeat the processing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from swtrace.series.circle import Circle
from swtrace.series.journal import Journal, RecordingJournal
from swtrace.series.pull.copier import HELD, Copier, CopyOperation, HeldOperation
from swtrace.series.pull.publication import Publication, stored, tensor_of
from swtrace.series.transport import PULL, RECEIVER
from swtrace.trace.schema import Clock
from swtrace.trace.share_folder import ShareFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from swtrace.series.layer import SeriesLayer
    from swtrace.series.transport import MovedLayer, OnReady
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder

logger = logging.getLogger(__name__)


class PullTransport:
    """One rank's end of a pull series whose layers are in host memory."""

    name = PULL
    rendezvous = RECEIVER
    queue = "receiver"
    clock = Clock.HOST
    device = None
    now = staticmethod(time.monotonic_ns)

    def __init__(self, folder: ShareFolder, own: int) -> None:
        """Join the other ranks.

        Args:
            folder: where they meet.
            own: this rank's index in the group.

        Raises:
            TransportError: the folder cannot be used.
        """
        folder.join()
        self._folder = folder
        self._own = own
        self._publication = publication = Publication(folder, own)
        self._origins: dict[int, Tensor] = {}
        """By position, the owner's bytes."""
        self._copier: Copier | None = None
        self._where = ""
        self._owned: Counter[int] = Counter()
        """How many layers each rank owns, by its index in the group."""
        self._gone: dict[int, bool] = {}
        """Owners that are gone, by index, and whether they died."""
        self.gather = folder.exchange
        self.broadcast = publication.broadcast

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:
        """Return the payload in shared memory, where the other ranks read it."""
        folder, publication, name = self._folder, self._publication, stored(layer)
        raw = publication.last(layer)
        if not folder.has(name) and folder.has(raw):
            shared = publication.shared(raw, payload)
            if shared is not None:
                folder.link(raw, name)
                return shared
        return publication.publish(name, payload)

    def circle(self, where: str, layers: Sequence[SeriesLayer], *arguments: Any, **options: Any) -> Circle[OnReady]:
        """Map the other ranks' layers, start the copier and return what runs the steps."""
        for layer in layers:
            if layer.window is not None:
                size = layer.window.buffer.nbytes
                self._origins[layer.position] = tensor_of(self._folder.map(stored(layer), size, writable=False))
            raw = self._publication.last(layer)
            if layer.owned and not self._folder.same(raw, stored(layer)):
                self._folder.remove(raw)
        self._where = where
        self._owned = Counter(layer.source for layer in layers)
        self._copier = Copier(f"swtrace-copier {where}", self._look_after_owners)
        return Circle(where, layers, *arguments, **options)

    def _look_after_owners(self) -> None:
        """Log which owners are gone, or are back; their layers stay where they are."""
        for index, layers in self._owned.items():
            lives = self._folder.lives(index)
            if lives != (index in self._gone):
                continue
            rank = self._folder.ranks[index]
            if lives:
                died, what = self._gone.pop(index), "is back"
            else:
                died = self._gone[index] = self._folder.died(index)
                what = (
                    f"{'died' if died else 'has left'}; this rank goes on, because the {layers} layers that rank "
                    f"{rank} owns stay in shared memory"
                )
            logger.log(logging.WARNING if died else logging.INFO, "swtrace: %s: rank %d %s", self._where, rank, what)

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[OnReady]:  # noqa: ARG002
        """Return a journal that writes to the ring at once."""
        return RecordingJournal(series, self, every=every)

    def issue(
        self, buffer: Tensor, layer: MovedLayer, on_ready: OnReady | None = None
    ) -> CopyOperation | HeldOperation:
        """Start to copy the layer into ``buffer``; do nothing on its owner."""
        if layer.source == self._own:
            return HELD
        return self._copier.copy(buffer, self._origins[layer.position], on_ready)  # type: ignore[union-attr]

    def close(self) -> None:
        """Finish the copies under way, and leave the folder; the last rank removes it."""
        if self._copier is not None:
            self._copier.close()
            self._copier = None
        self._folder.leave()
