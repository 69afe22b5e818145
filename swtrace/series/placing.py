"""Post-processing: from loaded (source) and freed (other) layers to owned payloads and filled windows.

Layer by layer, all ranks alike, the true bytes are broadcast and every rank runs the layer's own
post-processing on them; the source keeps the result, the others hold it in the layer's window, where
a later layer overwrites it. The first ``k`` layers come last, so that the first forward finds them.

The bytes are received in the very window they belong to, so that no rank ever holds more than what it
will hold while it serves. Only where post-processing changes the layout (a transpose, a repack, a
quantisation) one buffer of the old layout is kept until the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.errors import RegistrationError
from swtrace.series.payload import PayloadLayout, move_into, packed, payload_tensors
from swtrace.series.pool import Window, WindowPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from swtrace.series.layer import SeriesLayer
    from swtrace.series.loading import PendingLayer


@dataclass(frozen=True, slots=True)
class Placement:
    """What post-processing leaves behind."""

    layout: PayloadLayout
    windows: tuple[Window, ...]


class Placing:
    """One series' post-processing on one rank."""

    def __init__(
        self,
        where: str,
        layers: Sequence[SeriesLayer],
        pending: Sequence[PendingLayer],
        pool: WindowPool,
        broadcast: Callable[[SeriesLayer, Tensor], None],
    ) -> None:
        """Prepare; all sequences are by position.

        Args:
            where: names series and rank in errors.
            layers: the series.
            pending: their loading.
            pool: this rank's windows, none allocated yet.
            broadcast: fills a byte buffer from a layer's source; blocking.
        """
        self._where = where
        self._layers = layers
        self._pending = pending
        self._pool = pool
        self._broadcast = broadcast
        self._raw = pending[0].layout
        self._layout: PayloadLayout | None = None
        self._scratch: Window | None = None
        """Receives the bytes where windows have another layout than they."""

    def run(self, prefetch_step: int) -> Placement:
        """Place every layer; collective."""
        count = len(self._layers)
        for position in (*range(prefetch_step, count), *range(prefetch_step)):
            if self._layers[position].owned:
                self._place_owned(position)
            else:
                self._place_received(position)
        layout = self._layout or self._raw
        windows = self._pool.complete(layout, self._device(self._layers[0]))
        for layer in self._layers[:prefetch_step]:
            layer.prefilled = True
            layer.step = 0
            layer.reach_position = (layer.position - prefetch_step) % count
            if layer.window is not None:
                layer.window.occupant = layer
        return Placement(layout, windows)

    def _place_owned(self, position: int) -> None:
        layer, pending = self._layers[position], self._pending[position]
        loaded = payload_tensors(layer.module)
        if PayloadLayout.of(loaded) != self._raw:
            raise RegistrationError(
                f"{self._where}, layer {layer.layer_idx}: loading replaced its tensors: "
                f"registered as {self._raw}, loaded as {PayloadLayout.of(loaded)}"
            )
        self._broadcast(layer, packed(self._raw, loaded))
        del loaded
        pending.process()
        tensors = self._processed(layer)
        layer.buffer = packed(self._layout_now(), tensors)
        layer.tensors = tuple(tensors.values())

    def _place_received(self, position: int) -> None:
        layer, pending = self._layers[position], self._pending[position]
        device = self._device(layer)
        landing = self._pool.landing(position)
        in_place = self._layout in (None, self._raw)
        if in_place:
            receiver = self._pool.window(landing, self._raw, device)
        else:
            receiver = self._scratch = self._scratch or Window(landing, self._raw, device)
        for place, view in zip(self._raw.places, receiver.views, strict=True):
            getattr(layer.module, place.name).data = view
        self._broadcast(layer, receiver.buffer)
        pending.process()
        tensors = self._processed(layer)
        layout = self._layout_now()
        if in_place and layout != self._raw:
            self._scratch = self._pool.take_out(landing)
        layer.window = self._pool.window(landing, layout, device)
        move_into(layer.window.views, tensors)
        layer.tensors = tuple(tensors.values())

    def _processed(self, layer: SeriesLayer) -> dict[str, Tensor]:
        """Return the layer's tensors, fetched by name anew: post-processing may have replaced any of them."""
        tensors = payload_tensors(layer.module)
        layout = PayloadLayout.of(tensors)
        if not tensors:
            raise RegistrationError(
                f"{self._where}, layer {layer.layer_idx}: its post-processing left no tensor that could be shared: "
                f"the kernel keeps the weight elsewhere"
            )
        if self._layout is None:
            self._layout = layout
        elif layout != self._layout:
            raise RegistrationError(
                f"{self._where}, layer {layer.layer_idx}: unequal to the others after post-processing: "
                f"{layout}; the others have {self._layout}"
            )
        return tensors

    def _layout_now(self) -> PayloadLayout:
        return self._layout or self._raw

    @staticmethod
    def _device(layer: SeriesLayer) -> torch.device:
        return next(layer.module.parameters(recurse=False)).device
