"""What a series needs from a device: streams, events, and whether a graph is being captured.

Everything but stamps goes through torch's accelerator-neutral API, so that code for CUDA also runs on ROCm and
other accelerators that implement it. Nothing here blocks the host. The tests' simulated device has the
same interface.
"""

from __future__ import annotations

import ctypes
import logging
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch

from swtrace.errors import RegistrationError

logger = logging.getLogger(__name__)

COUNTER_RANGE = 256
"""A device is never so many steps behind its host, because its queue of launches is bounded."""


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None:
        """Put the point after all work that was enqueued on ``stream`` so far."""

    def query(self) -> bool:
        """Return whether the stream has reached the point; True for an event that was never recorded."""

    def elapsed_time(self, end: Self) -> float:
        """Return the time from this point to ``end`` in ms; negative if ``end`` came first. Both must be passed."""


class Stream(Protocol):
    """A queue of work that runs in order."""

    def wait_event(self, event: Any) -> None:
        """Make all further work wait for the last recording of ``event``."""


class Counter(Protocol):
    """A number in host memory that the device's work changes, modulo :data:`COUNTER_RANGE`."""

    def show(self, number: int) -> None:
        """Have the current stream store ``number`` once it has run all work that was enqueued on it so far."""

    def shown(self) -> int:
        """Return the number stored last. Calls nothing of the device, so any thread may do so at any time."""


class Device(Protocol):
    """A device with streams, events and graphs."""

    name: str
    """``cuda:0``, ..."""

    def current_stream(self) -> Stream:
        """Return the stream that receives the caller's work."""

    def prefetch_stream(self) -> Stream:
        """Return a new stream whose work has priority over other streams'."""

    def on(self, stream: Any) -> AbstractContextManager[object]:
        """Make ``stream`` the current stream inside the block."""

    def event(self, *, timed: bool) -> Event:
        """Return a new event; only a timed one measures elapsed time."""

    def capturing(self) -> bool:
        """Return whether the current stream's work is being captured into a graph instead of run."""

    def host_ns(self) -> int:
        """Return the host's CLOCK_MONOTONIC in ns."""

    def hold(self, tensor: Any, stream: Any) -> None:
        """Tell the allocator not to reuse the tensor's memory before ``stream`` has finished with it."""

    def counter(self) -> Counter:
        """Return a counter that shows 0."""

    def stamps(self, slots: int) -> Any:
        """Return :class:`~swtrace.series.device.stamps.Stamps`, which time captured work; None if unavailable."""


class TorchDevice:
    """A :class:`Device` of torch."""

    host_ns = staticmethod(time.monotonic_ns)

    def __init__(self, device: torch.device) -> None:
        """Use one device.

        Raises:
            RegistrationError: torch has no streams and timed events for such a device.
        """
        self.name = str(device)
        self._device = device
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None or accelerator.type != device.type:
            raise RegistrationError(
                f"device {device}: torch {torch.__version__} has no accelerator of that kind here, "
                "so broadcasts on it can be neither ordered nor timed"
            )
        # torch looks up a stream by number four times as fast as by device.
        self._index = torch.accelerator.current_device_index() if device.index is None else device.index
        module = torch.get_device_module(device)
        self._is_capturing: Any = getattr(module, "is_current_stream_capturing", None)
        try:
            probe = torch.Event(device, enable_timing=True)
            probe.record(torch.accelerator.current_stream(device))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise RegistrationError(f"device {device}: its events cannot be timed: {error}") from error

    def current_stream(self) -> torch.Stream:
        """Return the stream that receives the caller's work."""
        return torch.accelerator.current_stream(self._index)

    def prefetch_stream(self) -> torch.Stream:
        """Return a new stream, with high priority if the device has priorities."""
        return torch.Stream(self._device, priority=-1)

    def on(self, stream: torch.Stream) -> AbstractContextManager[object]:
        """Make ``stream`` the current stream inside the block."""
        return stream

    def event(self, *, timed: bool) -> torch.Event:
        """Return a new event."""
        return torch.Event(self._device, enable_timing=timed)

    def capturing(self) -> bool:
        """Return whether the current stream is being captured into a graph; False on a device without graphs."""
        return self._is_capturing is not None and bool(self._is_capturing())

    def hold(self, tensor: torch.Tensor, stream: torch.Stream) -> None:
        """Tell the caching allocator that ``stream`` uses the tensor's memory."""
        tensor.record_stream(stream)

    def counter(self) -> TorchCounter:
        """Return a counter in pinned memory."""
        return TorchCounter(self._device)

    def stamps(self, slots: int) -> Any:
        """Return device-side time stamps, or None if kernels cannot read the device's clock."""
        from swtrace.series.device.stamps import Stamps, StampsUnavailable

        try:
            return Stamps(self._device, slots)
        except StampsUnavailable as unavailable:
            logger.warning("steps that replay a CUDA graph will not be timed on %s: %s", self.name, unavailable)
            return None


class TorchCounter:
    """A :class:`Counter` of torch: asynchronous copies of prepared numbers into pinned memory."""

    def __init__(self, device: torch.device) -> None:
        """Prepare the numbers on the device."""
        with torch.inference_mode(mode=False):  # inference tensors cannot be written outside inference mode
            numbers = torch.arange(COUNTER_RANGE, dtype=torch.int64, device=device)
            self._shown = torch.zeros(1, dtype=torch.int64, device="cpu", pin_memory=True)
        self._numbers = tuple(numbers.view(-1, 1))
        self._word = ctypes.c_int64.from_address(self._shown.data_ptr())

    def show(self, number: int) -> None:
        """Copy the number in the order of the current stream."""
        self._shown.copy_(self._numbers[number % COUNTER_RANGE], non_blocking=True)

    def shown(self) -> int:
        """Read the pinned memory."""
        return self._word.value
