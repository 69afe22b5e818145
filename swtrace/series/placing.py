"""Turns loaded (source) and freed (other) layers into owned payloads and filled windows.

Layer by layer, on all ranks alike, the true bytes are broadcast and every rank runs the layer's own
post-processing on them. The source keeps the result. The others hold it in the layer's window, where
a later layer overwrites it. The first ``k`` layers come last, so that the first forward finds them.

The bytes are received in their final window, so that no rank ever holds more than it does while serving.
If post-processing changes the layout (a transpose, a repack, a quantisation), one buffer of the old layout
is kept until the end.

With a proof, two layers are tried before any is moved, while their post-processing's results are in memory
of their own. If they cannot be shared, nothing is lost: these two are whole on every rank. Every other
layer is too, once its true bytes are broadcast and its post-processing has run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.errors import RegistrationError
from swtrace.series.fingerprint import digest
from swtrace.series.layer import Window, WindowPool
from swtrace.series.ownership import tag_of
from swtrace.series.payload import PayloadLayout, move_into, new_buffer, own_tensors, packed, payload_tensors
from swtrace.series.proof import method_name
from swtrace.series.references import held_tensors, storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from swtrace.series.layer import SeriesLayer
    from swtrace.series.loading import PendingLayer
    from swtrace.series.proof import Proof


class Unshareable(Exception):  # noqa: N818 (not an error: the layers can still be used whole)
    """A post-processed layer cannot be shared; the message says why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The result of placing."""

    layout: PayloadLayout
    windows: tuple[Window, ...]
    holders: dict[int, SeriesLayer]
    """By window index, the layer whose bytes the window holds; other windows hold nothing yet."""
    moved: frozenset[int]
    """Positions that were processed in different memory than where they are now."""
    digests: tuple[str, ...]
    """By position, the digest of the layer's payload; empty texts if they were not requested."""


class Placing:
    """Places the layers of one series on one rank."""

    def __init__(
        self,
        where: str,
        layers: Sequence[SeriesLayer],
        pending: Sequence[PendingLayer],
        pool: WindowPool,
        broadcast: Callable[[SeriesLayer, Tensor], None],
        store: Callable[[SeriesLayer, Tensor], Tensor],
        proof: Proof | None,
        joint: Callable[[str], str],
        *,
        fingerprinted: bool,
    ) -> None:
        """Prepare; all sequences are by position.

        Args:
            where: names series and rank in errors.
            layers: all of the series.
            pending: their loading state.
            pool: this rank's windows, none allocated yet.
            broadcast: fills a byte buffer from a layer's source; blocking.
            store: returns the memory that holds an owned layer's payload from now on.
            proof: tries each layer as soon as it is processed.
            joint: returns the first refusal in rank order; collective.
            fingerprinted: whether to compute the digests of all layers.
        """
        self._where = where
        self._layers = layers
        self._pending = pending
        self._pool = pool
        self._broadcast = broadcast
        self._store = store
        self._proof = proof
        self._joint = joint
        self._fingerprinted = fingerprinted
        self._digests: dict[int, str] = {}
        self._moved: set[int] = set()
        self._untouched: set[int] = set()
        """Positions that are still where their post-processing left them."""
        self._processed: set[int] = set()
        self._holders: dict[int, SeriesLayer] = {}
        self._raw = pending[0].layout
        self._layout: PayloadLayout | None = None
        self._scratch: Window | None = None
        """Receives the bytes if the windows' layout differs from theirs."""
        self.left_behind = ""
        """Which attribute still views memory that its layer has left; empty if none does."""

    def run(self, prefetch_step: int) -> Placement:
        """Place every layer; collective.

        Raises:
            Unshareable: on all ranks at the same layer; call :meth:`replicate` then.
            RegistrationError: a layer's own post-processing raised an error, perhaps on this rank only.
        """
        count = len(self._layers)
        order = (*range(prefetch_step, count), *range(prefetch_step))
        if self._proof is not None:
            self._try(self._proof, order[0], order[1])
        for at, position in enumerate(order):
            try:
                self._place(position)
            except (Unshareable, RegistrationError):
                self._join_broadcasts(order[at + 1 :])
                raise
        layout = self._layout or self._raw
        windows = self._pool.complete(layout, self._device(self._layers[0]))
        for layer in self._layers[:prefetch_step]:
            layer.prefilled = True
            layer.step = 0
            layer.reach_position = (layer.position - prefetch_step) % count
            if layer.window is not None:
                layer.window.occupant = layer
        digests = tuple(self._digests.get(position, "") for position in range(count))
        return Placement(layout, windows, self._holders, frozenset(self._moved), digests)

    def _place(self, position: int) -> None:
        if position in self._untouched:
            self._move(position)
        elif self._layers[position].owned:
            self._place_owned(position)
        else:
            self._place_received(position)

    def _join_broadcasts(self, positions: Sequence[int]) -> None:
        """Take part in the remaining broadcasts, for ranks that can place these layers."""
        for position in positions:
            layer = self._layers[position]
            if position in self._untouched:
                continue
            if layer.owned:
                self._send(layer)
            else:
                self._broadcast(layer, new_buffer(self._raw, self._device(layer)))

    def _try(self, proof: Proof, *positions: int) -> None:
        """Process two layers in memory of their own, and prove with them that all can be shared."""
        for position in positions:
            layer, pending = self._layers[position], self._pending[position]
            if layer.owned:
                self._send(layer)
            else:
                self._broadcast(layer, self._fresh(layer, self._raw))
            pending.process()
            proof.processed(layer)
            self._processed.add(position)
            self._untouched.add(position)
        refusal = ""
        try:
            for position in positions:
                self._tensors(self._layers[position])
        except Unshareable as unshareable:
            refusal = str(unshareable)
        first, second = (self._layers[position] for position in positions)
        refusal = self._joint(refusal or proof.refute(first, second))
        if refusal:
            raise Unshareable(refusal)

    def _move(self, position: int) -> None:
        """Move a tried layer to its place."""
        layer = self._layers[position]
        tensors = self._tensors(layer)
        self._untouched.discard(position)
        self._moved.add(position)
        if layer.owned:
            self._keep(layer, tensors)
        else:
            self._receive(layer, tensors)

    def _send(self, layer: SeriesLayer) -> None:
        """Broadcast a layer's loaded bytes."""
        self._broadcast(layer, self._packed(layer, self._raw, payload_tensors(layer.module)))

    @staticmethod
    def _packed(layer: SeriesLayer, layout: PayloadLayout, tensors: dict[str, Tensor]) -> Tensor:
        """Return a layer's payload, with its tag."""
        payload = packed(layout, tensors)
        if layout.tagged:
            layout.tag(payload).fill_(tag_of(layer.layer_idx))
        return payload

    def _fresh(self, layer: SeriesLayer, layout: PayloadLayout) -> Tensor:
        """Give a layer's tensors memory of their own, and return it."""
        buffer = new_buffer(layout, self._device(layer))
        self._point(layer, layout.views(buffer))
        return buffer

    @staticmethod
    def _point(layer: SeriesLayer, views: tuple[Tensor, ...]) -> None:
        for tensor, view in zip(payload_tensors(layer.module).values(), views, strict=True):
            tensor.data = view

    def _place_owned(self, position: int) -> None:
        layer, pending = self._layers[position], self._pending[position]
        self._send(layer)
        self._keep(layer, self._process(layer, pending))

    def _keep(self, layer: SeriesLayer, tensors: dict[str, Tensor]) -> None:
        """Make a processed layer's tensors the payload that this rank keeps and sends, with its tag."""
        layout = self._layout_now()
        payload = self._packed(layer, layout, tensors)
        self._note(layer, payload)
        layer.buffer = self._store(layer, payload)
        if layer.buffer is not payload:
            self._point(layer, layout.views(layer.buffer))
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
        self._point(layer, receiver.views)
        self._broadcast(layer, receiver.buffer)
        tensors = self._process(layer, pending)
        if in_place and self._layout_now() != self._raw:
            self._scratch = self._pool.take_out(landing)
        if self._proof is None and (self._pool.rolling or receiver is self._scratch):
            self.left_behind = self.left_behind or self._left_in(receiver, layer, tensors)
        self._receive(layer, tensors)

    @staticmethod
    def _left_in(receiver: Window, layer: SeriesLayer, tensors: dict[str, Tensor]) -> str:
        """Return which attribute views memory that the layer leaves, and what to do; empty if none does."""
        memory, moving = storage_of(receiver.buffer), set(map(id, tensors.values()))
        for part in layer.module.modules():
            for name, tensor in held_tensors(part):
                if id(tensor) not in moving and storage_of(tensor) == memory:
                    return (
                        f"{method_name(layer.module)} of layer {layer.layer_idx} keeps {type(part).__name__}.{name}, a "
                        f"view of the weight, which would later show other layers; make it a parameter, buffer or copy"
                    )
        return ""

    def _receive(self, layer: SeriesLayer, tensors: dict[str, Tensor]) -> None:
        """Move a processed layer into its window, with its tag."""
        landing = self._pool.landing(layer.position)
        layer.window = self._pool.window(landing, self._layout_now(), self._device(layer))
        move_into(layer.window.views, tensors)
        if layer.window.tag is not None:
            layer.window.tag.fill_(tag_of(layer.layer_idx))
        self._note(layer, layer.window.buffer)
        self._holders[layer.window.index] = layer
        layer.tensors = tuple(tensors.values())

    def _note(self, layer: SeriesLayer, payload: Tensor) -> None:
        if self._fingerprinted:
            self._digests[layer.position] = digest(payload)

    def replicate(self) -> None:
        """Give every rank every layer whole; collective."""
        for layer, pending in zip(self._layers, self._pending, strict=True):
            if layer.position in self._untouched:
                continue
            processed = layer.position in self._processed
            tensors = payload_tensors(layer.module)
            if processed and not tensors:
                continue  # its weight is elsewhere, on every rank
            layout = self._layout_of(tensors) if processed else self._raw
            if layer.owned:
                layer.buffer = packed(layout, tensors)
                self._broadcast(layer, layer.buffer)
            else:
                layer.window = None
                self._broadcast(layer, self._fresh(layer, layout))
            del tensors
            if not processed:
                pending.process()
                if self._proof is not None:
                    self._proof.processed(layer)

    def _process(self, layer: SeriesLayer, pending: PendingLayer) -> dict[str, Tensor]:
        """Process a layer; return its tensors, looked up again because any of them may have been replaced."""
        try:
            pending.process()
        except Exception as error:
            raise RegistrationError(
                f"{self._where}, layer {layer.layer_idx}: {method_name(layer.module)} raised "
                f"{type(error).__name__}: {error}"
            ) from error
        self._processed.add(layer.position)
        if self._proof is not None:
            self._proof.processed(layer)
        return self._tensors(layer)

    def _tensors(self, layer: SeriesLayer) -> dict[str, Tensor]:
        """Return a processed layer's tensors, after checking that its layout equals the others'."""
        tensors = payload_tensors(layer.module)
        layout = self._layout_of(tensors)
        if not tensors:
            raise Unshareable(
                f"{method_name(layer.module)} left layer {layer.layer_idx} without a tensor to share: "
                f"it keeps the weight elsewhere"
            )
        if self._layout is None:
            self._layout = layout
        elif layout != self._layout:
            raise Unshareable(
                f"layer {layer.layer_idx} differs from the others after post-processing: "
                f"it has {layout}; the others have {self._layout}"
            )
        return tensors

    def _layout_of(self, tensors: dict[str, Tensor]) -> PayloadLayout:
        return PayloadLayout.of(tensors, tagged=self._raw.tagged)

    def _layout_now(self) -> PayloadLayout:
        return self._layout or self._raw

    @staticmethod
    def _device(layer: SeriesLayer) -> torch.device:
        return next(iter(own_tensors(layer.module).values())).device
