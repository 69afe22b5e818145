"""The few things that a series asks of a device: streams, events, and whether a graph is being captured.

Everything goes through torch's accelerator-neutral API, so that what runs on CUDA runs on ROCm and on
other accelerators that implement it. Nothing here blocks the host. A test's simulated device has the
same shape.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch

from swtrace.errors import RegistrationError

logger = logging.getLogger(__name__)


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None:
        """Put the point behind all work that ``stream`` has been given so far."""

    def query(self) -> bool:
        """Whether the stream has come to the point. True for an event that was never recorded."""

    def elapsed_time(self, end: Self) -> float:
        """Return the time from this point to ``end``, both passed, in ms; negative if ``end`` came first."""


class Stream(Protocol):
    """Work in order."""

    def wait_event(self, event: Any) -> None:
        """Let all further work wait until ``event``, as recorded last, has come."""


class Device(Protocol):
    """What the series' streams, events and graphs belong to."""

    name: str
    """``cuda:0``, ..."""

    def current_stream(self) -> Stream:
        """Return the stream that the caller's work goes into."""

    def prefetch_stream(self) -> Stream:
        """Return a new stream whose work goes before other streams' where both could run."""

    def on(self, stream: Any) -> AbstractContextManager[object]:
        """Make ``stream`` the current one, for a while."""

    def event(self, *, timed: bool) -> Event:
        """Return a new event; only a timed one can be asked for elapsed time."""

    def capturing(self) -> bool:
        """Whether the current stream's work is being captured into a graph, not run."""

    def host_ns(self) -> int:
        """Return the host's CLOCK_MONOTONIC in ns."""

    def hold(self, tensor: Any, stream: Any) -> None:
        """Tell the allocator that ``stream`` uses the tensor's memory: nobody may get it before that is done."""

    def stamps(self, slots: int) -> Any:
        """Return what times captured work (:class:`~swtrace.series.device.stamps.Stamps`); None where nothing can."""


class TorchDevice:
    """A device that torch drives."""

    host_ns = staticmethod(time.monotonic_ns)

    def __init__(self, device: torch.device) -> None:
        """Take one device in use.

        Raises:
            RegistrationError: torch has no streams and events for such a device.
        """
        self.name = str(device)
        self._device = device
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None or accelerator.type != device.type:
            raise RegistrationError(
                f"device {device}: torch {torch.__version__} has no accelerator of that kind here, "
                "so broadcasts on it can be neither ordered nor timed"
            )
        # torch finds a stream by a number four times as fast as by a device.
        self._index = torch.accelerator.current_device_index() if device.index is None else device.index
        module = torch.get_device_module(device)
        self._is_capturing: Any = getattr(module, "is_current_stream_capturing", None)
        try:
            probe = torch.Event(device, enable_timing=True)
            probe.record(torch.accelerator.current_stream(device))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise RegistrationError(f"device {device}: its events cannot be timed: {error}") from error

    def current_stream(self) -> torch.Stream:
        """Return the stream that the caller's work goes into."""
        return torch.accelerator.current_stream(self._index)

    def prefetch_stream(self) -> torch.Stream:
        """Return a new stream of high priority, where the device has priorities."""
        return torch.Stream(self._device, priority=-1)

    def on(self, stream: torch.Stream) -> AbstractContextManager[object]:
        """Make ``stream`` the current one, for a while."""
        return stream

    def event(self, *, timed: bool) -> torch.Event:
        """Return a new event."""
        return torch.Event(self._device, enable_timing=timed)

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph; a device without graphs never is."""
        return self._is_capturing is not None and bool(self._is_capturing())

    def hold(self, tensor: torch.Tensor, stream: torch.Stream) -> None:
        """Tell the caching allocator that ``stream`` uses the tensor's memory."""
        tensor.record_stream(stream)

    def stamps(self, slots: int) -> Any:
        """Return device-side time stamps, where the device has a clock that its kernels can read."""
        from swtrace.series.device.stamps import Stamps, StampsUnavailable

        try:
            return Stamps(self._device, slots)
        except StampsUnavailable as unavailable:
            logger.warning("steps that replay a CUDA graph will not be timed on %s: %s", self.name, unavailable)
            return None
