"""A series that is only observed: every rank keeps every layer, nothing moves, and reaches and waits are recorded.

Its transport has operations that are complete at once. So journals and circles are those of a shared series in which a
rank is the source of all layers, with one difference: no order of calls is an error. A user's forward that reaches the
layers in another order is recorded as far as possible, and otherwise left alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy

from swtrace.errors import OrderError
from swtrace.series import operations
from swtrace.series.circle import Circle
from swtrace.series.communicator import gather
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.device.device_circle import DeviceCircle
from swtrace.series.device.device_transport import DeviceTransport
from swtrace.series.journal import Journal, RecordingJournal
from swtrace.series.payload import payload_tensors
from swtrace.series.transport import Observer
from swtrace.share import NONE
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.device.accelerator import Device
    from swtrace.series.device.sheets import TransferEvents
    from swtrace.series.group import Group
    from swtrace.series.series import Series
    from swtrace.series.transport import MovedLayer, OnReady
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder


class _Complete:
    """An operation that is complete at once."""

    __slots__ = ()
    ready_ns = 0
    observed = Observed.NEVER

    def wait(self) -> None:
        """Return at once."""

    def done(self) -> bool:
        """Return True."""
        return True


_COMPLETE = _Complete()


class _LenientCircle(Circle[Observer]):
    """Ignores what is out of order, because no weight depends on it."""

    unwaited_warning = (
        "swtrace: %s: a step did not call %d of %d observed linears: the model does not use them, or calls them where "
        "swtrace does not see it. When these begin is unknown"
    )

    def reach(self, layer_idx: int) -> None:
        """Note the arrival at a layer, if it is the next one."""
        try:
            super().reach(layer_idx)
        except OrderError:
            return

    def wait(self, layer_idx: int) -> None:
        """Note that a linear begins, if the step has reached its layer."""
        try:
            super().wait(layer_idx)
        except OrderError:
            return


class ObservedCircle(_LenientCircle["OnReady"]):
    """Runs the steps of an observed series on the host."""


class ObservedDeviceCircle(_LenientCircle["TransferEvents"], DeviceCircle):
    """Runs the steps of an observed series on a device."""


class Unshared:
    """The transport of an observed series on the host. It moves nothing, and needs no communicator of its own."""

    name = NONE
    rendezvous = "source"
    queue = "receiver"
    clock = Clock.HOST
    device: Device | None = None
    now = staticmethod(time.monotonic_ns)
    circle = ObservedCircle

    def __init__(self, group: Group) -> None:
        """Prepare, without communication."""
        self._group = group

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocking, unless this rank is alone."""
        return gather(self._group, item)

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Do nothing."""

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:  # noqa: ARG002 (the interface)
        """Return the payload."""
        return payload

    def issue(self, _buffer: Tensor, _layer: MovedLayer, _on_ready: OnReady | None = None, /) -> _Complete:
        """Return a complete operation."""
        return _COMPLETE

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[OnReady]:  # noqa: ARG002
        """Return a journal that writes to the ring at once."""
        return RecordingJournal(series, self, every=every)

    def close(self) -> None:
        """Do nothing."""


class UnsharedOnDevice(DeviceTransport):
    """The transport of an observed series on a device. Events on the caller's stream show when layers are reached."""

    circle = ObservedDeviceCircle

    def __init__(self, device: Device, group: Group, num_layers: int) -> None:
        """Prepare, without communication."""
        super().__init__(device, _Still(group), num_layers)

    def issue(self, _buffer: Tensor, _layer: MovedLayer, events: TransferEvents | None = None, /) -> _Complete:
        """Record the arrival if it is timed; return a complete operation."""
        if events is not None:
            stream = self.device.current_stream()
            events.issued.record(stream)
            events.ready.record(stream)
        return _COMPLETE


class _Still:
    """A mover that moves nothing."""

    name = NONE
    rendezvous = "source"

    def __init__(self, group: Group) -> None:
        self._group = group

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank."""
        return gather(self._group, item)

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def unshared(group: Group, device: torch.device, num_layers: int) -> Unshared | UnsharedOnDevice:
    """Return the transport of an observed series.

    Raises:
        RegistrationError: the device's events cannot be timed.
    """
    return Unshared(group) if device.type == "cpu" else UnsharedOnDevice(TorchDevice(device), group, num_layers)


def loaded_bytes(layer: nn.Module) -> int:
    """Return the bytes of a layer's tensors; 0 while they are created only when they are loaded."""
    tensors = payload_tensors(layer).values()
    if any(is_lazy(tensor) or tensor.is_meta for tensor in tensors):
        return 0
    return sum(tensor.nbytes for tensor in tensors)


class ObservedLayer:
    """Notes when one layer's forward begins. The layer itself stays as it is: it can be loaded, copied and changed."""

    def __init__(self, series: Series | None, layer_idx: int, layer: nn.Module) -> None:
        self._series = series
        self._layer_idx = layer_idx
        self._handles = [
            layer.register_forward_pre_hook(self._begins, with_kwargs=True),
            layer.register_forward_hook(self._ends),
        ]

    def _begins(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        series = self._series
        if series is None:
            return None
        if not is_compiling():
            series.wait(self._layer_idx)
            return None
        activation = args[0] if args else None
        if not (isinstance(activation, torch.Tensor) and activation.is_floating_point()) or torch.is_grad_enabled():
            self._wait_outside()
            return None
        # A clone, because the graph claims to write to this tensor; the caller's memory may be read-only or shared.
        x = activation.clone()
        operations.follow(x, series.order_token)
        operations.wait(x, series.number, self._layer_idx)
        return (x, *args[1:]), kwargs

    def _ends(self, _layer: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        """Keep the next reach of a compiled forward behind this layer."""
        series = self._series
        if series is not None and is_compiling() and not torch.is_grad_enabled() and isinstance(result, torch.Tensor):
            operations.follow(result, series.order_token)

    def _wait_outside(self) -> None:
        """Wait eagerly, between two graphs."""
        if self._series is not None:
            self._series.wait(self._layer_idx)

    def release(self) -> None:
        """Remove the hooks."""
        self._series = None
        while self._handles:
            self._handles.pop().remove()

    def __deepcopy__(self, _memo: dict[int, Any]) -> ObservedLayer:
        """Return a hook that does nothing, for a copy of the layer."""
        return _inert()

    def __reduce__(self) -> Any:
        """Return a hook that does nothing, for a copy of the layer in another process."""
        return _inert, ()


def _inert() -> ObservedLayer:
    return ObservedLayer(None, -1, nn.Identity())


operations.run_outside(
    ObservedLayer._wait_outside,  # noqa: SLF001
    "swtrace: with gradients, or without an activation to order it with, this linear's beginning is noted between two "
    "graphs; run under torch.no_grad()",
)
