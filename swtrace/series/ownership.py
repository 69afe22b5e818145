"""The ownership check, a debug mode that finds a linear that reads another layer's weight.

Every weight has a tag with its layer's index, and every receiver checks the tag.

The tag follows the weight, in the same buffer and broadcast. The source writes it once, when post-processing places its
layer. A receiver checks it twice, on the stream that reads the weight. After the wait, the tag must be the right
layer's. Just before the next broadcast gets the window, the tag must be unchanged. So the check reads the device's
memory at the time when the linear reads it, also in a replayed graph. It does not rely on what the host has launched.

A check is two operations on single numbers that were allocated in advance. It allocates nothing, synchronises nothing
and a graph can capture it. A step's checks are added up when it ends. Sums in host memory are read at once. On
a device they are copied without blocking, and read at the end of the first step that finds the copy complete: one
step late, if the device keeps up with the host.

The tag is at the payload's end. So the check cannot see a broadcast under way that has not reached the tag yet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from swtrace.errors import StaleWindowError
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.journal import Journal
from swtrace.series.transport import Observer
from swtrace.trace.schema import NO_WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from swtrace.series.device.accelerator import Device
    from swtrace.series.device.sheets import Entry
    from swtrace.series.layer import SeriesLayer, Window
    from swtrace.series.transport import Operation
    from swtrace.trace.request_link import RequestLink

MAGIC = 0x53775461
"""The upper half of every tag, which neither an empty window (0) nor arbitrary bytes have."""
_LAYER_BITS = 32
_READ, _FREED, _READ_IN_GRAPH, _FREED_IN_GRAPH = range(4)
"""The two checks: before a layer is read, and before its window is reused. Each exists again for captured graphs,
where every replay repeats it, independently of the checks outside."""
_WHEN = ("when it was read", "before it was freed", "when it was read", "before it was freed")
_MOST_FINDINGS = 8
"""Findings in one error, which keeps the message readable."""
FINISH_PATIENCE_S = 10.0
"""How long :meth:`OwnershipCheck.finish` waits for the device."""
_FINISH_POLL_S = 0.001


def tag_of(layer_idx: int) -> int:
    """Return the tag of a layer (its absolute index)."""
    return MAGIC << _LAYER_BITS | layer_idx


def _numbers(row: Tensor) -> tuple[Tensor, ...]:
    """Return a view of each element."""
    return tuple(row[position : position + 1] for position in range(row.numel()))


def holder(tag: int) -> str:
    """Return what a window with this tag holds, in words."""
    if tag >> _LAYER_BITS == MAGIC:
        return f"layer {tag & ((1 << _LAYER_BITS) - 1)}"
    return "no layer yet" if tag == 0 else f"an unknown tag ({tag & ((1 << 64) - 1):#018x})"


class _Reader(NamedTuple):
    """The layer whose tag was checked in a window."""

    position: int
    found: Tensor
    """The tag that was found."""


class OwnershipCheck:
    """Checks the tags of one series' windows on one rank."""

    def __init__(
        self, where: str, layers: Sequence[SeriesLayer], windows: Sequence[Window], device: Device | None = None
    ) -> None:
        """Allocate everything that a check needs.

        Args:
            where: names series and rank in errors.
            layers: by position.
            windows: this rank's, tagged.
            device: owns the windows' memory, if work on it runs in streams; by default torch's device, or None for
                host memory.
        """
        memory = windows[0].buffer.device
        if device is None and memory.type != "cpu":
            device = TorchDevice(memory)
        self._where = where
        self._layers = tuple(layer.layer_idx for layer in layers)
        self._device = device
        count = len(layers)
        with torch.inference_mode(mode=False):  # inference tensors cannot be changed outside inference mode
            expected = torch.tensor([tag_of(layer_idx) for layer_idx in self._layers], device=memory)
            self._found = torch.zeros(len(_WHEN), count, dtype=torch.int64, device=memory)
            """``[look, position]``: the tag that the last check found."""
            self._differences = torch.zeros(len(_WHEN), count, dtype=torch.int64, device=memory)
            """``[look, position]``: found tag ^ expected tag; each check runs once per step."""
            self._differing = torch.zeros(len(_WHEN), count, dtype=torch.bool, device=memory)
            self._sums = torch.zeros(2, len(_WHEN), count, dtype=torch.int64, device=memory)
            """``[0, look, position]``: number of checks that differed; ``[1, ...]``: the last tag among them."""
            self._landing = torch.zeros(2, len(_WHEN), count, dtype=torch.int64, pin_memory=memory.type != "cpu")
            """The sums' copy on the host."""
            self._expected = _numbers(expected)
            self._tags_found = tuple(_numbers(row) for row in self._found)
            self._tags_differing = tuple(_numbers(row) for row in self._differences)
        self._readers: list[_Reader | None] = [None] * (1 + max(window.index for window in windows))
        """By window: the reader whose first check has run, but not its second."""
        self._captured_readers = list(self._readers)
        """The same, in the graph that is being captured."""
        self._reader_at, self._captured_reader_at = (
            tuple(_Reader(p, self._tags_found[look][p]) for p in range(count)) for look in (_READ, _READ_IN_GRAPH)
        )
        self._captured_issue = -1
        """Position of the last captured broadcast."""
        self._landed = device.event(timed=False) if device is not None else None
        """Recorded after the last copy of the sums; None if they are in host memory and read directly."""
        self._shipped_step: int | None = None
        """The step at whose end the last copy was made."""
        self._last_step: int | None = None
        self._reported = [[0] * count for _ in _WHEN]
        """``[look][position]``: differences that an error has reported."""

    def verify(self, layer: SeriesLayer, *, captured: bool = False) -> None:
        """Check a window's tag, after a receiver's wait and on the stream that will read the weight."""
        window = layer.window
        if window is None or window.tag is None:
            return
        position = layer.position
        if captured:
            self._captured_readers[window.index] = self._captured_reader_at[position]
        else:
            self._readers[window.index] = self._reader_at[position]
        self._compare_tags(_READ_IN_GRAPH if captured else _READ, position, window.tag, self._expected[position])

    def verify_again(self, window: Window, *, captured: bool = False) -> None:
        """Check a window's tag again, after the last reader and before the window goes to the next broadcast.

        Only if its layer was waited for: nothing else was read. The tag is compared with the first one found, so that
        an error is not reported twice.
        """
        readers = self._captured_readers if captured else self._readers
        reader = readers[window.index]
        if reader is None or window.tag is None:
            return
        readers[window.index] = None
        self._compare_tags(_FREED_IN_GRAPH if captured else _FREED, reader.position, window.tag, reader.found)

    def issue_captured(self, layer: SeriesLayer) -> None:
        """Check the window's last reader again, in every replay of the graph."""
        if layer.position <= self._captured_issue:  # another capture began, without the last one's readers
            self._captured_readers = [None] * len(self._captured_readers)
        self._captured_issue = layer.position
        if not layer.owned and layer.window is not None:
            self.verify_again(layer.window, captured=True)

    def replayed(self, window: int, position: int) -> None:
        """Note that a replayed graph made the first check of a window's reader."""
        self._readers[window] = self._captured_reader_at[position]

    def discard_first_checks(self) -> None:
        """Forget the step's first checks outside the graph, which ran after the replay instead of before it."""
        self._differences[_READ].zero_()

    def _compare_tags(self, look: int, position: int, tag: Tensor, should_be: Tensor) -> None:
        found = self._tags_found[look][position]
        found.copy_(tag)
        torch.bitwise_xor(found, should_be, out=self._tags_differing[look][position])

    def collect(self, step: int) -> None:
        """Add up a finished step's checks, and read those that have reached the host. Never blocks; not in a capture.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        if self._landed is None:
            if self._differences.any():
                self._add_up()
                self._judge(self._sums.tolist(), step)
            return
        if self._device is not None and self._device.capturing():
            return
        self._last_step = step
        self._add_up()
        if self._shipped_step is None:
            self._ship(step)
        elif self._landed.query():
            found, until = self._landing.tolist(), self._shipped_step
            self._ship(step)
            self._judge(found, until)

    def finish(self) -> None:
        """Read the last step's checks when the series ends; wait for the device, up to :data:`FINISH_PATIENCE_S`.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        step = self._last_step
        if self._landed is None or step is None:
            return
        self._ship(step)
        deadline = time.monotonic() + FINISH_PATIENCE_S
        while not self._landed.query():
            if time.monotonic() > deadline:
                return
            time.sleep(_FINISH_POLL_S)
        self._judge(self._landing.tolist(), step)

    def _add_up(self) -> None:
        torch.ne(self._differences, 0, out=self._differing)
        counts, last = self._sums
        counts.add_(self._differing)
        torch.where(self._differing, self._found, last, out=last)
        self._differences.zero_()

    def _ship(self, step: int) -> None:
        """Copy the sums to the host, without blocking."""
        if self._device is None or self._landed is None:
            return
        self._copy_out()
        self._landed.record(self._device.current_stream())
        self._shipped_step = step

    def _copy_out(self) -> None:
        self._landing.copy_(self._sums, non_blocking=True)

    def _judge(self, sums: list[list[list[int]]], step: int) -> None:
        """Raise one error with all differences not reported yet, if there are any."""
        counts, last = sums
        if counts == self._reported:
            return
        findings = [
            f"layer {layer_idx}: its window held {holder(last[look][position])} "
            f"{_WHEN[look]}, {counts[look][position]} time{'s' * (counts[look][position] > 1)} so far"
            for position, layer_idx in enumerate(self._layers)
            for look in range(len(_WHEN))
            if counts[look][position] > self._reported[look][position]
        ]
        self._reported = counts
        more = len(findings) - _MOST_FINDINGS
        raise StaleWindowError(
            f"{self._where}: the ownership check found, by the end of step {step}: "
            + "; ".join(findings[:_MOST_FINDINGS])
            + (f"; and {more} more" if more > 0 else "")
        )


FORWARDED = (
    "waits",
    "finished_without_wait",
    "left_open",
    "blocks",
    "unblocks",
    "leaves",
    "begins",
    "arrives",
    "ends",
    "captures_ready",
    "captures_wait",
)
"""Calls of a journal that the check does not need."""


class CheckingJournal(Journal[Observer]):
    """Wraps a series' journal and checks the windows; what is recorded stays the same."""

    def __init__(self, inner: Journal[Observer], check: OwnershipCheck) -> None:
        self._inner = inner
        self._check = check
        for name in FORWARDED:
            setattr(self, name, getattr(inner, name))

    def issues(self, layer: SeriesLayer) -> Observer | None:
        """Check the window's last reader again."""
        if not layer.owned and layer.window is not None:
            self._check.verify_again(layer.window)
        return self._inner.issues(layer)

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Check the window, after the wait's end was recorded as without the check."""
        self._inner.waited(layer, operation)
        self._check.verify(layer)

    def freed(self, window: Window) -> None:
        """Check the window's last reader again."""
        self._check.verify_again(window)
        self._inner.freed(window)

    def stepped(self, step: int, links: Sequence[RequestLink], **fields: int) -> None:
        """Pass it on, then read the checks.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        self._inner.stepped(step, links, **fields)
        self._check.collect(step)

    def captures_issue(self, layer: SeriesLayer) -> None:
        """Check the window's last reader again, in every replay."""
        self._check.issue_captured(layer)
        self._inner.captures_issue(layer)

    def captures_waited(self, layer: SeriesLayer) -> None:
        """Check the window, in every replay."""
        self._inner.captures_waited(layer)
        self._check.verify(layer, captured=True)

    def replays(self, transfers: tuple[Entry, ...]) -> None:
        """Note which readers the graph has checked."""
        self._inner.replays(transfers)
        for transfer in transfers:
            if transfer.window != NO_WINDOW:
                self._check.replayed(transfer.window, transfer.position)

    def unobserved(self) -> None:
        """Forget the checks that ran too late."""
        self._inner.unobserved()
        self._check.discard_first_checks()

    def closes(self) -> None:
        """Pass it on, then read the last checks.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        self._inner.closes()
        self._check.finish()
