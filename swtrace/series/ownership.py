"""The ownership check, a debug mode: every window says which layer it holds, and every reader looks.

A tag travels behind the weight, in the same buffer and the same broadcast: the source writes it once, when
its layer is placed. A receiver looks at it twice, in the order of the stream that reads the weight: behind the
wait (is it there, and is it the right layer's?), and just before the window is given to the next broadcast
(has it stayed the same until the last reader was done?). So what is checked is what the device has in memory
when it reads, under graph replay too, and not what the host believes.

A look is two operations on single numbers that were allocated beforehand: it allocates nothing, synchronises nothing
and can be captured into a graph. A step's looks are added up at its end. The sums are read at once where they are
in host memory. On a device they are copied without blocking, and read at the first step's end at which the copy
is complete: a step late, if the device keeps up with the host.

What it cannot see: a broadcast that is under way and has not come to the tag, which is at the payload's end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from swtrace.errors import StaleWindowError
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.journal import Journal
from swtrace.trace.schema import NO_WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from swtrace.series.device.accelerator import Device
    from swtrace.series.device.sheets import Entry
    from swtrace.series.layer import SeriesLayer, Window
    from swtrace.series.transport import Operation

MAGIC = 0x53775461
"""The upper half of every tag. What a window holds before its first layer (0) or by accident is none."""
_LAYER_BITS = 32
_READ, _FREED, _READ_IN_GRAPH, _FREED_IN_GRAPH = range(4)
"""The two looks, when a layer is about to be read and when its window is about to be given away; and those that were
captured into a graph: each replay makes them anew, whatever is looked at outside."""
_SAID = ("when it was read", "before it was freed", "when it was read", "before it was freed")
_TOLD_AT_MOST = 8
"""Findings in one error: more would make a message that nobody reads."""
FINISH_PATIENCE_S = 10.0
"""How long :meth:`OwnershipCheck.finish` waits for the device."""
_FINISH_POLL_S = 0.001


def tag_of(layer_idx: int) -> int:
    """Return the tag of a layer (its absolute index)."""
    return MAGIC << _LAYER_BITS | layer_idx


def _numbers(row: Tensor) -> tuple[Tensor, ...]:
    """Return a view of each number."""
    return tuple(row[position : position + 1] for position in range(row.numel()))


def holder(tag: int) -> str:
    """Say what a window with this tag holds."""
    if tag >> _LAYER_BITS == MAGIC:
        return f"layer {tag & ((1 << _LAYER_BITS) - 1)}"
    return "no layer yet" if tag == 0 else f"an unknown tag ({tag & ((1 << 64) - 1):#018x})"


class _Reader(NamedTuple):
    """Who was looked at in a window."""

    position: int
    found: Tensor
    """The tag that it had before it."""


class OwnershipCheck:
    """Looks at the tags of one series' windows on one rank."""

    def __init__(
        self, where: str, layers: Sequence[SeriesLayer], windows: Sequence[Window], device: Device | None = None
    ) -> None:
        """Prepare everything that a look needs.

        Args:
            where: names series and rank in errors.
            layers: by position.
            windows: of this rank, tagged.
            device: what the windows' memory belongs to, where work on it is done in streams; by default what
                torch knows of it, or nothing for host memory.
        """
        memory = windows[0].buffer.device
        if device is None and memory.type != "cpu":
            device = TorchDevice(memory)
        self._where = where
        self._layers = tuple(layer.layer_idx for layer in layers)
        self._device = device
        count = len(layers)
        with torch.inference_mode(mode=False):  # inference tensors could not be changed outside of that mode
            expected = torch.tensor([tag_of(layer_idx) for layer_idx in self._layers], device=memory)
            self._found = torch.zeros(len(_SAID), count, dtype=torch.int64, device=memory)
            """``[look, position]``: the tag that was there, at the last look."""
            self._differences = torch.zeros(len(_SAID), count, dtype=torch.int64, device=memory)
            """``[look, position]``: that ^ the tag that should have been there; each look is made once in a step."""
            self._differing = torch.zeros(len(_SAID), count, dtype=torch.bool, device=memory)
            self._sums = torch.zeros(2, len(_SAID), count, dtype=torch.int64, device=memory)
            """``[0, look, position]``: how many looks differed; ``[1, ...]``: the last tag of these."""
            self._landing = torch.zeros(2, len(_SAID), count, dtype=torch.int64, pin_memory=memory.type != "cpu")
            """The sums as they come to the host."""
            self._expected = _numbers(expected)
            self._tags_found = tuple(_numbers(row) for row in self._found)
            self._tags_differing = tuple(_numbers(row) for row in self._differences)
        self._readers: list[_Reader | None] = [None] * (1 + max(window.index for window in windows))
        """By window: who was looked at there once and not yet again."""
        self._captured_readers = list(self._readers)
        """The same, in the graph that is being captured."""
        self._reader_at, self._captured_reader_at = (
            tuple(_Reader(p, self._tags_found[look][p]) for p in range(count)) for look in (_READ, _READ_IN_GRAPH)
        )
        self._captured_issue = -1
        """The last position that a broadcast was captured for."""
        self._landed = device.event(timed=False) if device is not None else None
        """Behind the last copy of the sums; without it, they are read where they are."""
        self._shipped_step: int | None = None
        """The step whose end the last copy was made at."""
        self._last_step: int | None = None
        self._told = [[0] * count for _ in _SAID]
        """``[look][position]``: how many differences an error has stated."""

    def verify(self, layer: SeriesLayer, *, captured: bool = False) -> None:
        """Look, behind a receiver's wait and on the stream that will read the weight."""
        window = layer.window
        if window is None or window.tag is None:
            return
        position = layer.position
        if captured:
            self._captured_readers[window.index] = self._captured_reader_at[position]
        else:
            self._readers[window.index] = self._reader_at[position]
        self._look(_READ_IN_GRAPH if captured else _READ, position, window.tag, self._expected[position])

    def verify_again(self, window: Window, *, captured: bool = False) -> None:
        """Look once more, after the last reader and before the window is given to the next broadcast.

        Only where the layer in it was waited for: nobody has read anything else. What was wrong already when it
        was read, is not found a second time.
        """
        readers = self._captured_readers if captured else self._readers
        reader = readers[window.index]
        if reader is None or window.tag is None:
            return
        readers[window.index] = None
        self._look(_FREED_IN_GRAPH if captured else _FREED, reader.position, window.tag, reader.found)

    def issue_captured(self, layer: SeriesLayer) -> None:
        """Look once more at who was in the window, whenever the graph is replayed."""
        if layer.position <= self._captured_issue:  # another capture: who read in the last one is not in this one
            self._captured_readers = [None] * len(self._captured_readers)
        self._captured_issue = layer.position
        if not layer.owned and layer.window is not None:
            self.verify_again(layer.window, captured=True)

    def replayed(self, window: int, position: int) -> None:
        """Take into account that a replayed graph looked at a window's reader."""
        self._readers[window] = self._captured_reader_at[position]

    def disregard_first_looks(self) -> None:
        """Forget the step's first looks outside of the graph: they came after the graph that they should have led."""
        self._differences[_READ].zero_()

    def _look(self, look: int, position: int, tag: Tensor, should_be: Tensor) -> None:
        found = self._tags_found[look][position]
        found.copy_(tag)
        torch.bitwise_xor(found, should_be, out=self._tags_differing[look][position])

    def collect(self, step: int) -> None:
        """Add up a finished step's looks, and read what has come to the host. Never blocks; not in a capture.

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
        """Read the last step's looks, when the series ends: waits for the device, but not for ever.

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
        """Send the sums to the host."""
        if self._device is None or self._landed is None:
            return
        self._copy_out()
        self._landed.record(self._device.current_stream())
        self._shipped_step = step

    def _copy_out(self) -> None:
        self._landing.copy_(self._sums, non_blocking=True)

    def _judge(self, sums: list[list[list[int]]], step: int) -> None:
        """Raise if anything differed that has not been told."""
        counts, last = sums
        if counts == self._told:
            return
        findings = [
            f"layer {layer_idx}: its window held {holder(last[look][position])} "
            f"{_SAID[look]}, {counts[look][position]} time{'s' * (counts[look][position] > 1)} so far"
            for position, layer_idx in enumerate(self._layers)
            for look in range(len(_SAID))
            if counts[look][position] > self._told[look][position]
        ]
        self._told = counts
        more = len(findings) - _TOLD_AT_MOST
        raise StaleWindowError(
            f"{self._where}: the ownership check found, by the end of step {step}: "
            + "; ".join(findings[:_TOLD_AT_MOST])
            + (f"; and {more} more" if more > 0 else "")
        )


PASSED_ON = ("waits", "settled", "left_open", "begins", "arrives", "ends", "captures_ready", "captures_wait")
"""Calls of a journal that the check has nothing to do with."""


class CheckingJournal(Journal):
    """Stands in front of a series' journal and looks at the windows; what is journalled stays the same."""

    def __init__(self, inner: Journal, check: OwnershipCheck) -> None:
        self._inner = inner
        self._check = check
        for name in PASSED_ON:
            setattr(self, name, getattr(inner, name))

    def issues(self, layer: SeriesLayer) -> object:
        """Look once more at who was in the window."""
        if not layer.owned and layer.window is not None:
            self._check.verify_again(layer.window)
        return self._inner.issues(layer)

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Look into the window; the wait's end is journalled before, as without the check."""
        self._inner.waited(layer, operation)
        self._check.verify(layer)

    def freed(self, window: Window) -> None:
        """Look once more at who was in the window."""
        self._check.verify_again(window)
        self._inner.freed(window)

    def stepped(self, step: int, **fields: int) -> None:
        """Pass it on, then read what was found.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        self._inner.stepped(step, **fields)
        self._check.collect(step)

    def captures_issue(self, layer: SeriesLayer) -> None:
        """Look once more at who was in the window, at every replay."""
        self._check.issue_captured(layer)
        self._inner.captures_issue(layer)

    def captures_waited(self, layer: SeriesLayer) -> None:
        """Look into the window, at every replay."""
        self._inner.captures_waited(layer)
        self._check.verify(layer, captured=True)

    def replays(self, transfers: tuple[Entry, ...]) -> None:
        """Note who was looked at in the graph."""
        self._inner.replays(transfers)
        for transfer in transfers:
            if transfer.window != NO_WINDOW:
                self._check.replayed(transfer.window, transfer.position)

    def unobserved(self) -> None:
        """Forget looks that came too late."""
        self._inner.unobserved()
        self._check.disregard_first_looks()

    def closes(self) -> None:
        """Pass it on, then read what was found last.

        Raises:
            StaleWindowError: a window did not hold its layer.
        """
        self._inner.closes()
        self._check.finish()
