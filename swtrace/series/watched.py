"""Copies that other code makes and waits for, recorded as the transfers of a series.

The code that is watched decides what is copied, when, and who waits. Here, only timing events are added beside its
calls: *issued* on the caller's stream, *ready* on the copy stream behind the copy, and *wait begin* on the caller's
stream before the wait. No stream waits for them.

A copy is for the next forward of its layer: of this step, if that is still to come, otherwise of the next step. Outside
of marked steps, such as while an engine warms up, nothing is recorded. A step that captures or replays a graph is
counted and not timed, because its copies run without the calls that are watched.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from swtrace.series.device.device_journal import DeviceJournal
from swtrace.series.device.sheets import Entry
from swtrace.series.layer import SeriesLayer
from swtrace.trace.schema import Observed, Phase, StepFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from swtrace.series.device.accelerator import Device, Stream
    from swtrace.series.layer import Window
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import Recorder
    from swtrace.trace.request_link import RequestLink

_watched: list[weakref.ref[WatchedCopies]] = []


def watched() -> tuple[WatchedCopies, ...]:
    """Return what is watched in this process and not closed."""
    return tuple(copies for known in _watched if (copies := known()) is not None and not copies.closed)


def forget_watched() -> None:
    """Stop watching, because this process ends or is about to build another model."""
    for copies in watched():
        copies.close()
    _watched.clear()


class _Slot:
    """The buffer that a layer is copied into."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class _OnStream:
    """A copy whose instants the journal reads from the step's sheet."""

    __slots__ = ()
    ready_ns = 0
    observed = Observed.NEVER

    def wait(self) -> None:
        """Do nothing: the watched code waits."""

    def done(self) -> bool:
        """Return False: nobody asks the device."""
        return False


_ON_STREAM = _OnStream()


class WatchedCopies:
    """The copies of one ring of layers on one rank."""

    def __init__(
        self,
        info: SeriesInfo,
        modules: Sequence[nn.Module],
        slots: Sequence[int],
        device: Device,
        copy_stream: Stream,
        recorder: Recorder,
        *,
        every: int,
    ) -> None:
        """Begin before the first step.

        Args:
            info: describes the layers.
            modules: by position, what waits for its copy and then runs.
            slots: by position, the number of the buffer that it is copied into.
            device: holds the buffers.
            copy_stream: runs all copies.
            recorder: of this rank.
            every: one step in so many is timed; see :class:`~swtrace.series.journal.Sampling`.

        Raises:
            RingFullError: the ring has no room for the series.
        """
        self.closed = False
        self._device = device
        self._stream = copy_stream
        self._layers = tuple(
            SeriesLayer(position, info.layers[position], module, 0, owned=False)
            for position, module in enumerate(modules)
        )
        for layer, slot in zip(self._layers, slots, strict=True):
            layer.window = cast("Window", _Slot(slot))
            layer.prefilled = True
        self._journal = DeviceJournal(recorder.add_series(info), device, len(self._layers), every=every, stamps=None)
        self._step = -1
        self._in_step = False
        """Whether a step was marked and has not ended."""
        self._open = False
        """Whether it has reached a layer."""
        self._arrived = 0
        """The position that it reached last."""
        self._waits = 0
        self._graphs = False
        """Whether a graph was captured or replayed in the step."""
        self._operations = 0
        _watched.append(weakref.ref(self))

    # ---- what the watched code does ----------------------------------------------------------------

    def copies(self, position: int, copy: Callable[[], None]) -> None:
        """Call ``copy``, which enqueues the copy of a layer on the copy stream, and time it."""
        layer = self._layers[position]
        if not self._in_step or self._device.capturing():
            self._graphs |= self._in_step
            layer.prefilled = True
            copy()
            return
        if not self._open:
            self._arrive(position)
        step = self._step
        wanted = step if layer.waited_step != step else step + 1
        if layer.step not in {layer.recorded_step, wanted} and not layer.prefilled:
            self._finish_without_wait(layer)
        layer.prefilled = False
        layer.issued_step, layer.step = step, wanted
        layer.reach_position = self._arrived
        layer.operation_number = self._operations
        self._operations += 1
        events = self._journal.issues(layer)
        if events is not None:
            events.issued.record(self._device.current_stream())
        copy()
        if events is not None:
            events.ready.record(self._stream)

    def waits(self, position: int, wait: Callable[[], None]) -> None:
        """Call ``wait``, which makes the current stream wait for a layer's copy, and time when it begins."""
        layer = self._layers[position]
        if not self._in_step or self._device.capturing():
            self._graphs |= self._in_step
            wait()
            return
        if not self._open:
            self._arrive(position)
        step = self._step
        if layer.waited_step == step:
            wait()
            return
        self._arrived = position
        there = layer.prefilled or layer.step != step
        layer.step = layer.waited_step = layer.recorded_step = step
        layer.prefilled = there
        self._journal.waits(layer)
        wait()
        self._journal.waited(layer, None if there else _ON_STREAM)
        self._waits += 1

    def replays(self) -> None:
        """Note that a graph is captured or replayed next."""
        self._graphs |= self._in_step

    # ---- steps -------------------------------------------------------------------------------------

    @contextmanager
    def step(
        self,
        *,
        phase: Phase = Phase.OTHER,
        tokens: int = 0,
        requests: int = 0,
        links: Sequence[RequestLink] = (),
    ) -> Iterator[None]:
        """Mark a forward. One that reaches no layer is not counted; see :meth:`~swtrace.series.Series.begin_step`."""
        self._journal.begins()
        self._in_step, self._open, self._graphs, self._waits = True, False, False, 0
        flags = StepFlag(0)
        try:
            yield
        except BaseException:
            flags = StepFlag.ABORTED
            raise
        finally:
            if self._graphs and not self._open:
                self._arrive(0)
            self._in_step = False
            if self._open:
                self._end(flags, links, phase=int(phase), tokens=tokens, requests=requests)
            else:
                self._journal.leaves()

    def _arrive(self, position: int) -> None:
        self._open = True
        self._step += 1
        self._arrived = position
        self._journal.arrives(self._step, marked=True)

    def _end(self, flags: StepFlag, links: Sequence[RequestLink], **batch: int) -> None:
        step = self._step
        self._journal.ends()
        for layer in self._layers if not self._graphs else ():
            if layer.recorded_step != step:
                if layer.step < step:  # neither copied nor used, as a layer that never runs on this rank
                    layer.step, layer.prefilled = step, True
                self._finish_without_wait(layer)
        waits = self._waits
        if self._graphs:
            waits = len(self._layers)
            self._journal.replays(tuple(self._in_graph(layer) for layer in self._layers))
        self._journal.stepped(step, links, kept_layers=0, waits=waits, flags=int(flags), **batch)

    def _in_graph(self, layer: SeriesLayer) -> Entry:
        """Return a copy that a graph made, of which only its number is known."""
        layer.prefilled = True
        layer.waited_step = layer.recorded_step = layer.step = self._step
        self._operations += 1
        window: Any = layer.window
        return Entry(layer.position, self._operations - 1, layer.position, 0, window.index, 0)

    def _finish_without_wait(self, layer: SeriesLayer) -> None:
        self._journal.finished_without_wait(layer, None)
        layer.recorded_step = layer.step

    def close(self) -> None:
        """Record what is left, and mark the series as ended. The watched code goes on."""
        if self.closed:
            return
        self.closed = True
        for layer in self._layers:
            if layer.step > self._step and not layer.prefilled:
                self._journal.left_open(layer, _ON_STREAM)
        self._journal.closes()
