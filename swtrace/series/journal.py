"""What a series writes down: every operation of a step exactly once, then the step itself.

A receiver's record is written at its wait's end. A source does not wait for its send, so its record
is written when the step ends or the layer is sent again, whichever is first; so is that of a broadcast
that nobody waited for. What could not be observed is said to be so: no instant is ever made up.

Not every step is timed, because observing costs: a step that is not has its STEP record only, which counts it.
The window table shows every step.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from swtrace.series.layer import SeriesLayer, Window
from swtrace.trace.machine import MachineNoise
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, TransferFlag, Untimed

if TYPE_CHECKING:
    from swtrace.series.device.sheets import Entry
    from swtrace.series.transport import OnReady, Operation, Transport
    from swtrace.trace.recorder import SeriesRecorder

_OWN = int(TransferFlag.OWN)
_OPEN = int(TransferFlag.OPEN)
_PREFILLED = int(TransferFlag.PREFILLED)
_CROSSES = int(TransferFlag.CROSSES_STEPS)
_UNWAITED = int(TransferFlag.UNWAITED)
_UPPER_BOUND = int(Observed.UPPER_BOUND)
_NEVER = int(Observed.NEVER)
_TIMED = int(Untimed.TIMED)
_SAMPLED = int(Untimed.SAMPLED)

DEFAULT_EVERY = 32
"""How many steps there are for each timed one. ``benchmarks/tracing.py`` measures the cost by this number."""
FIRST_STEPS = 64
"""Unless the settings say otherwise, all of so many steps are timed first: short runs are timed in full."""
RUN_STEPS = 4
"""Timed steps follow one another in runs of so many: only after an untimed step is it not known what the channel
carried before, so the first delivery of a run has no transfer, and a stall of it no cause."""


class Sampling:
    """Which steps are timed: by their numbers, so that all ranks time the same ones without a word."""

    def __init__(self, every: int) -> None:
        """Choose.

        Args:
            every: how many steps there are for each timed one; 0 for :data:`DEFAULT_EVERY` after the first ones.
        """
        self._first_steps = 0 if every else FIRST_STEPS
        self._period = RUN_STEPS * (every or DEFAULT_EVERY)

    def times(self, step: int) -> bool:
        """Whether a step is timed."""
        return step % self._period < RUN_STEPS or step < self._first_steps


class Journal:
    """What the series tells about itself while it runs. A journal reads the clocks; its callers have none.

    This one keeps nothing: it is the journal of an untraced series.
    """

    def issues(self, layer: SeriesLayer) -> object:
        """Tell that a broadcast into the layer's window is about to be issued; return the transport's observer."""

    def waits(self, layer: SeriesLayer) -> None:
        """Tell that the forward has come to where it needs the layer, the source's included."""

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Tell a receiver's wait, over now. ``operation`` is None where post-processing had filled the window."""

    def settled(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Tell the broadcast for ``layer.step``: a source's, or one that nobody waited for."""

    def left_open(self, layer: SeriesLayer, operation: Operation) -> None:
        """Tell a broadcast for a step that will never come: the run ends."""

    def freed(self, window: Window) -> None:
        """Tell that a window holds nothing."""

    def begins(self) -> None:
        """Tell that a forward begins; no layer is reached yet."""

    def arrives(self, step: int, *, marked: bool) -> None:
        """Tell that a step has come to its first layer; if not ``marked``, nobody told its beginning: it is this."""

    def ends(self) -> None:
        """Tell that the forward is over. Not told where nobody marked the end: it is that of the last wait then."""

    def stepped(self, step: int, **fields: int) -> None:
        """Tell a finished step, after all of its broadcasts.

        Args:
            step: Its number.
            fields: What else is known of it, by the names of :meth:`~swtrace.trace.recorder.SeriesRecorder.step`.
        """

    def closes(self) -> None:
        """Tell that the run is over: what has not been written yet, is now or never."""

    # On a device only: what is put into the current stream while a graph is captured, happens at every replay.

    def captures_issue(self, layer: SeriesLayer) -> None:
        """Tell that a broadcast is captured next; current is the stream that issues it."""

    def captures_ready(self, layer: SeriesLayer) -> None:
        """Tell that a broadcast was captured; current is the prefetch stream."""

    def captures_wait(self, layer: SeriesLayer) -> None:
        """Tell that the wait for a layer is captured next; current is the stream that reads it."""

    def captures_waited(self, layer: SeriesLayer) -> None:
        """Tell that a receiver's wait was captured, or that its layer will have been waited for before the graph."""

    def replays(self, transfers: tuple[Entry, ...]) -> None:
        """Tell that a graph with these transfers was replayed in this step."""

    def unobserved(self) -> None:
        """Tell that this step's replay is noticed only now: none of its instants is known."""


class RecordingJournal(Journal):
    """The journal of a traced series whose waits block the host: writes into the rank's ring as things happen."""

    def __init__(self, series: SeriesRecorder, transport: Transport, *, every: int = 1) -> None:
        """Begin before the first step.

        Args:
            series: where records go.
            transport: the series' own.
            every: how many steps there are for each timed one; see :class:`Sampling`.
        """
        self._series = series
        self._times = Sampling(every if transport.clock is Clock.HOST else 1).times
        self._now = transport.now
        self._clock = int(transport.clock)
        self._how = tuple(series.how(observed, self._clock, 0) for observed in Observed)
        self._how_crossing = tuple(series.how(observed, self._clock, _CROSSES) for observed in Observed)
        self._machine = MachineNoise() if transport.clock is Clock.HOST else None
        self._begin_ns = 0
        self._arrival_ns = 0
        self._end_ns = 0
        """The last wait's, until the forward's own is told."""

    def issues(self, layer: SeriesLayer) -> OnReady | None:
        """Enter the broadcast into the window table; if it is timed, its ready instant will follow from any thread."""
        step = layer.step
        layer.timed = timed = self._times(step)
        if layer.owned:
            # Nobody asks when a send is complete: that says nothing about the receivers.
            if timed:
                layer.issued_ns = self._now()
            return None
        layer.issued_ns = issued_ns = self._now()
        index = layer.window.index  # type: ignore[union-attr]
        layer.generation = generation = self._series.window_issued(index, step, layer.position, issued_ns)
        return partial(self._series.window_ready, index, generation) if timed else None

    def waits(self, layer: SeriesLayer) -> None:
        """Keep the instant for the record."""
        if layer.timed:
            layer.wait_ns = self._end_ns = self._now()

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Write a receiver's record."""
        self._end_ns = end_ns = self._now()
        begin_ns = layer.wait_ns
        window: Window = layer.window  # type: ignore[assignment]
        if operation is None:
            self._transfer(layer, begin_ns, begin_ns, begin_ns, begin_ns, _UPPER_BOUND, _PREFILLED)
            return
        if not layer.timed:
            self._series.window_in_use(window.index, layer.generation, end_ns)
            return
        ready_ns = operation.ready_ns
        if ready_ns:
            observed = operation.observed
            ready_ns = min(ready_ns, end_ns)
        else:
            observed = Observed.UPPER_BOUND
            ready_ns = end_ns
        self._series.delivered(
            layer.issued_ns,
            ready_ns,
            begin_ns,
            end_ns,
            layer.step,
            layer.operation_number,
            layer.position,
            layer.reach_position,
            layer.source,
            window.index,
            (self._how if layer.issued_step == layer.step else self._how_crossing)[observed],
            layer.generation,
        )

    def settled(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Write the record of a source, or of a broadcast without a wait."""
        if not layer.timed:
            return
        flags = _OWN if layer.owned else 0
        wait_ns = 0
        if layer.owned and layer.waited_step == layer.step:
            wait_ns = layer.wait_ns
        else:
            flags |= _UNWAITED
        if layer.prefilled:
            observed = _UPPER_BOUND if wait_ns else _NEVER
            self._transfer(layer, wait_ns, wait_ns, wait_ns, wait_ns, observed, flags | _PREFILLED)
        else:
            self._unattended(layer, operation, wait_ns, flags)

    def left_open(self, layer: SeriesLayer, operation: Operation) -> None:
        """Write the record of a broadcast that is under way as the run ends: open, not lost."""
        if layer.timed:
            self._unattended(layer, operation, 0, _UNWAITED | _OPEN | (_OWN if layer.owned else 0))

    def _unattended(self, layer: SeriesLayer, operation: Operation | None, wait_ns: int, flags: int) -> None:
        ready_ns = operation.ready_ns if operation is not None else 0
        observed = int(operation.observed) if operation is not None and ready_ns else _NEVER
        if not ready_ns and operation is not None and not operation.done():
            flags |= _OPEN
        if layer.issued_step != layer.step:
            flags |= _CROSSES
        self._transfer(layer, layer.issued_ns, ready_ns, wait_ns, wait_ns, observed, flags)

    def _transfer(
        self, layer: SeriesLayer, issued_ns: int, ready_ns: int, begin_ns: int, end_ns: int, observed: int, flags: int
    ) -> None:
        window = NO_WINDOW if layer.owned or layer.window is None else layer.window.index
        self._series.transfer(
            issued_ns,
            ready_ns,
            begin_ns,
            end_ns,
            layer.step,
            layer.operation_number,
            layer.position,
            layer.reach_position,
            layer.source,
            window,
            observed,
            flags,
            self._clock,
        )

    def freed(self, window: Window) -> None:
        """Clear the window's entry in the window table."""
        self._series.window_freed(window.index)

    def begins(self) -> None:
        """Keep the instant for the step's record."""
        self._begin_ns = self._now()

    def arrives(self, step: int, *, marked: bool) -> None:  # noqa: ARG002 (the step's record will tell)
        """Keep the instant for the step's record."""
        self._arrival_ns = self._end_ns = self._now()
        if not marked:
            self._begin_ns = self._arrival_ns

    def ends(self) -> None:
        """Keep the instant for the step's record."""
        self._end_ns = self._now()

    def stepped(self, step: int, **fields: int) -> None:
        """Write the step's record, with what the machine took from it."""
        run_delay_us, steal_us = self._machine.sample() if self._machine is not None else (0, 0)
        self._series.step(
            begin_ns=self._begin_ns,
            arrival_ns=self._arrival_ns,
            end_ns=self._end_ns,
            run_delay_us=run_delay_us,
            steal_us=steal_us,
            step=step,
            untimed=_TIMED if self._times(step) else _SAMPLED,
            clock=self._clock,
            **fields,
        )
