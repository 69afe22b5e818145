"""Times copies from pinned host memory to this rank's device: the most that offloaded weights can be copied with.

All ranks with a device copy at the same time, each one copy after another. Events on the device time them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from swtrace.errors import RegistrationError
from swtrace.profile import Spread, Timing
from swtrace.series.device.accelerator import Device, TorchDevice
from swtrace.trace.identity import H2D

if TYPE_CHECKING:
    from torch import Tensor

REGION = 64 << 20
"""Copies read at least so much memory in turn, as the copies of a model's layers do."""
_BYTES = 1 << 30
"""About how much a rank copies per size, ..."""
_FEWEST, _MOST = 8, 200
"""... within these numbers of copies."""
WARM_UP = 2
"""Copies before those that count. The first ones find the stream idle, and pages that were never read."""
_POLL_S = 0.0005
_TIMEOUT_NS = 60_000_000_000


class Copied(NamedTuple):
    """Copies of one rank, of one size."""

    seconds: list[float]
    """Of each, on the device."""
    calls: list[float]
    """Seconds of each call that issued one."""


class HostCopies:
    """A rank's device, and memory to copy between."""

    def __init__(
        self, device: Device, source: Tensor, target: Tensor, copy: Callable[[Tensor, Tensor], object] | None = None
    ) -> None:
        """Use pinned memory as ``source``, and memory of the device as ``target``.

        Args:
            device: the device.
            source: at least as large as each size.
            target: likewise.
            copy: enqueues a copy into the first tensor on the current stream; torch's by default.
        """
        self._device, self._source, self._target = device, source, target
        self._copy = copy or (lambda to, of: to.copy_(of, non_blocking=True))
        self._stream = device.prefetch_stream()

    @classmethod
    def of_rank(cls, largest: int) -> HostCopies | str | None:
        """Return those of the accelerator whose index is this process's rank on its host.

        Returns:
            None if torch sees no such accelerator; the reason if it cannot be used.
        """
        index = int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if kind is None or index >= torch.accelerator.device_count():
            return None
        try:
            torch.accelerator.set_device_index(index)
            place = torch.device(kind.type, index)
            source = torch.ones(max(largest, REGION), dtype=torch.uint8, pin_memory=True)
            return cls(TorchDevice(place), source, torch.empty(largest, dtype=torch.uint8, device=place))
        except (RegistrationError, RuntimeError) as error:
            return f"{kind.type}:{index}: {str(error).partition(os.linesep)[0]}"

    def time(self, nbytes: int) -> Copied | str:
        """Copy that many bytes several times; return the times, or why there are none. Blocks until all are done."""
        try:
            return self._timed(nbytes, min(max(_BYTES // nbytes, _FEWEST), _MOST) + WARM_UP)
        except RuntimeError as error:
            return f"{self._device.name}: {str(error).partition(os.linesep)[0]}"

    def _timed(self, nbytes: int, count: int) -> Copied:
        device, target = self._device, self._target[:nbytes]
        points = [(device.event(timed=True), device.event(timed=True)) for _ in range(count)]
        calls = []
        with device.on(self._stream):
            for index, (begin, end) in enumerate(points):
                offset = index % (self._source.nbytes // nbytes) * nbytes
                begin.record(self._stream)
                called_ns = device.host_ns()
                self._copy(target, self._source[offset : offset + nbytes])
                calls.append(max(1, device.host_ns() - called_ns) * 1e-9)
                end.record(self._stream)
        deadline_ns = device.host_ns() + _TIMEOUT_NS
        while not points[-1][1].query():
            if device.host_ns() > deadline_ns:
                raise RuntimeError(f"copies of {nbytes} bytes are not done after {_TIMEOUT_NS // 10**9} s")
            sleep(_POLL_S)
        seconds = [max(1e-9, begin.elapsed_time(end) * 1e-3) for begin, end in points]
        return Copied(seconds[WARM_UP:], calls[WARM_UP:])


def time_copies(
    copies: HostCopies | str | None, sizes: Sequence[int], gather: Callable[[object], list[Any]]
) -> Iterator[Timing | str]:
    """Yield a timing of each size, over all ranks with a device, and why others have none.

    All ranks must exhaust this at the same time; all yield the same.

    Args:
        copies: this rank's; as :meth:`HostCopies.of_rank` returns it.
        sizes: in bytes.
        gather: returns what each rank passes; no rank continues before all have called it.
    """
    about = gather(copies if isinstance(copies, str) else copies is not None)
    yield from (f"rank {rank}, {reason}" for rank, reason in enumerate(about) if isinstance(reason, str))
    if not any(about):
        yield "torch sees no GPU for any rank"
    if True not in about:
        return
    for nbytes in sizes:
        gather(None)
        found = gather(copies.time(nbytes) if isinstance(copies, HostCopies) else None)
        yield from (f"rank {rank}, {reason}" for rank, reason in enumerate(found) if isinstance(reason, str))
        ranks = [each for each in found if isinstance(each, Copied)]
        if ranks:
            seconds = [second for each in ranks for second in each.seconds]
            yield Timing(
                transport=H2D,
                family=H2D,
                ranks=len(ranks),
                bytes=nbytes,
                concurrent=1,
                computing=False,
                samples=len(seconds),
                seconds=Spread.of(seconds),
                issue_seconds=Spread.of(call for each in ranks for call in each.calls),
                compute_stretch=None,
            )
