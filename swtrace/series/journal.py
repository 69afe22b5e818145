"""What a series records: every operation of a step exactly once, then the step.

A receiver's record is written when its wait ends. A source does not wait for its send, so its record is written
when the step ends or the layer is sent again, whichever comes first. The same holds for a broadcast without a wait.
An instant that was not observed is marked as such and never invented.

Observing costs time, so not every step is timed: an untimed step has only its STEP record, which counts it.
The window table shows every step.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic

from swtrace.series.layer import SeriesLayer, Window
from swtrace.series.transport import Observer, OnReady
from swtrace.trace.machine import MachineNoise
from swtrace.trace.schema import MOST_REQUESTS, NO_WINDOW, RUN_STEPS, Clock, Observed, Stage, TransferFlag, Untimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.series.device.sheets import Entry
    from swtrace.series.transport import Operation, Transport
    from swtrace.trace.recorder import SeriesRecorder
    from swtrace.trace.request_link import RequestLink

_OWN = int(TransferFlag.OWN)
_OPEN = int(TransferFlag.OPEN)
_PREFILLED = int(TransferFlag.PREFILLED)
_CROSSES = int(TransferFlag.CROSSES_STEPS)
_UNWAITED = int(TransferFlag.UNWAITED)
_UPPER_BOUND = int(Observed.UPPER_BOUND)
_NEVER = int(Observed.NEVER)
_TIMED = int(Untimed.TIMED)
_SAMPLED = int(Untimed.SAMPLED)
_BETWEEN, _UNMARKED, _BEGUN, _MARKED = (int(stage) for stage in Stage)

DEFAULT_EVERY = 32
"""One step in so many is timed. ``benchmarks/tracing.py`` measures the cost by this number."""
FIRST_STEPS = 64
"""By default, so many steps at the start are all timed, so that short runs are timed in full."""


class Sampling:
    """Selects the timed steps by their numbers, so that all ranks time the same ones without communication."""

    def __init__(self, every: int) -> None:
        """Set the share of timed steps.

        Args:
            every: one step in so many is timed; 0 for :data:`DEFAULT_EVERY` after the first :data:`FIRST_STEPS`.
        """
        self._first_steps = 0 if every else FIRST_STEPS
        self._period = RUN_STEPS * (every or DEFAULT_EVERY)

    def times(self, step: int) -> bool:
        """Return whether a step is timed."""
        return step % self._period < RUN_STEPS or step < self._first_steps


class Journal(Generic[Observer]):
    """Is notified of what a running series does. The journal reads the clocks, its callers do not.

    This base class records nothing: it is the journal of an untraced series.
    """

    def issues(self, layer: SeriesLayer) -> Observer | None:
        """Note that the layer's broadcast is about to be issued; return the transport's observer."""

    def waits(self, layer: SeriesLayer) -> None:
        """Note that the forward needs the layer now, on its source as on the others."""

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Record a receiver's completed wait. ``operation`` is None if post-processing had filled the window."""

    def finished_without_wait(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Record the broadcast for ``layer.step``: a source's, or one without a wait."""

    def left_open(self, layer: SeriesLayer, operation: Operation) -> None:
        """Record a broadcast for a step that will never run, because the run ends."""

    def blocks(self, layer: SeriesLayer) -> None:
        """Note that the host is blocked until the layer's broadcast is complete."""

    def unblocks(self) -> None:
        """Note that it no longer is, because the broadcast is complete or failed."""

    def leaves(self) -> None:
        """Note that the forward ended with an error before all of its broadcasts were issued."""

    def freed(self, window: Window) -> None:
        """Note that a window holds nothing."""

    def begins(self) -> None:
        """Note that a forward begins; no layer is reached yet."""

    def arrives(self, step: int, *, marked: bool) -> None:
        """Note that a step has reached its first layer. If not ``marked``, this is also the step's beginning."""

    def ends(self) -> None:
        """Note that the forward has ended. Not called for an unmarked end, which is the end of the last wait."""

    def stepped(self, step: int, links: Sequence[RequestLink], **fields: int) -> None:
        """Record a finished step, after all of its broadcasts.

        Args:
            step: its number.
            links: the trace contexts of requests in its batch.
            fields: further fields of its record; see :meth:`~swtrace.trace.recorder.SeriesRecorder.step`.
        """

    def closes(self) -> None:
        """Write all remaining records, and mark the series as closed."""

    # On a device only: work put into the current stream during a capture runs at every replay.

    def captures_issue(self, layer: SeriesLayer) -> None:
        """Note that a broadcast is captured next; the current stream issues it."""

    def captures_ready(self, layer: SeriesLayer) -> None:
        """Note that a broadcast was captured; the current stream is the prefetch stream."""

    def captures_wait(self, layer: SeriesLayer) -> None:
        """Note that the wait for a layer is captured next; the current stream reads the layer."""

    def captures_waited(self, layer: SeriesLayer) -> None:
        """Note that a receiver's wait was captured, or will come before each replay of the graph."""

    def replays(self, transfers: tuple[Entry, ...]) -> None:
        """Note that a graph with these transfers was replayed in this step."""

    def unobserved(self) -> None:
        """Note that this step's replay was detected only afterwards, so none of its instants is known."""


def record_requests(series: SeriesRecorder, begin_ns: int, links: Sequence[RequestLink], step: int) -> None:
    """Record the first of a timed step's traced requests, before the step itself."""
    for index, link in enumerate(links[:MOST_REQUESTS]):
        series.request(begin_ns, link, step, index)


class RecordingJournal(Journal[OnReady]):
    """The journal of a traced series whose waits block the host; writes to the rank's ring at once."""

    def __init__(self, series: SeriesRecorder, transport: Transport[OnReady], *, every: int = 1) -> None:
        """Begin before the first step.

        Args:
            series: the recorder of the series.
            transport: the series' own.
            every: one step in so many is timed; see :class:`Sampling`.
        """
        self._series = series
        self._times = Sampling(every if transport.clock is Clock.HOST else 1).times
        self._now = transport.now
        self._clock = int(transport.clock)
        self._attributes = tuple(series.pack_attributes(observed, self._clock, 0) for observed in Observed)
        self._attributes_crossing = tuple(
            series.pack_attributes(observed, self._clock, _CROSSES) for observed in Observed
        )
        self._machine = MachineNoise() if transport.clock is Clock.HOST else None
        self._begin_ns = 0
        self._arrival_ns = 0
        self._end_ns = 0
        """The end of the last wait, until the end of the forward is marked."""

    def issues(self, layer: SeriesLayer) -> OnReady | None:
        """Enter the broadcast in the window table; if it is timed, return what adds its ready instant."""
        step = layer.step
        layer.timed = timed = self._times(step)
        layer.issued_ns = issued_ns = self._now()
        self._series.issued(layer.operation_number + 1, issued_ns)
        if layer.owned:
            return None  # a send is not observed: its completion says nothing about the receivers
        index = layer.window.index  # type: ignore[union-attr]
        layer.generation = generation = self._series.window_issued(index, step, layer.position, issued_ns)
        return partial(self._series.window_ready, index, generation) if timed else None

    def waits(self, layer: SeriesLayer) -> None:
        """Keep the instant for the layer's record."""
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
        self._series.write_transfer(
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
            (self._attributes if layer.issued_step == layer.step else self._attributes_crossing)[observed],
            layer.generation,
        )

    def finished_without_wait(self, layer: SeriesLayer, operation: Operation | None) -> None:
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
        """Write the record of a broadcast that is still under way when the run ends, flagged as open."""
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

    def blocks(self, layer: SeriesLayer) -> None:
        """Mark what the host waits for."""
        self._series.block(layer.position, self._now())

    def unblocks(self) -> None:
        """Remove the mark."""
        self._series.unblock(self._now())

    def leaves(self) -> None:
        """Mark that the host is in no step."""
        self._series.enter_stage(_BETWEEN, self._now())

    def freed(self, window: Window) -> None:
        """Clear the window's entry in the window table."""
        self._series.window_freed(window.index)

    def closes(self) -> None:
        """Mark the series as closed."""
        self._series.close()

    def begins(self) -> None:
        """Keep the instant for the step's record, and mark that the host is in a step."""
        self._begin_ns = self._now()
        self._series.enter_stage(_BEGUN, self._begin_ns)

    def arrives(self, step: int, *, marked: bool) -> None:  # noqa: ARG002 (the step's record has it)
        """Keep the instant for the step's record, and mark that the host is in a step."""
        self._arrival_ns = self._end_ns = self._now()
        if not marked:
            self._begin_ns = self._arrival_ns
        self._series.enter_stage(_MARKED if marked else _UNMARKED, self._arrival_ns)

    def ends(self) -> None:
        """Keep the instant for the step's record."""
        self._end_ns = self._now()

    def stepped(self, step: int, links: Sequence[RequestLink], **fields: int) -> None:
        """Write the step's record, with its run delay and steal time."""
        timed = self._times(step)
        if timed:
            record_requests(self._series, self._begin_ns, links, step)
        run_delay_us, steal_us = self._machine.sample() if self._machine is not None else (0, 0)
        self._series.step(
            begin_ns=self._begin_ns,
            arrival_ns=self._arrival_ns,
            end_ns=self._end_ns,
            run_delay_us=run_delay_us,
            steal_us=steal_us,
            step=step,
            untimed=_TIMED if timed else _SAMPLED,
            clock=self._clock,
            **fields,
        )
        self._series.enter_stage(_BETWEEN, self._end_ns)
