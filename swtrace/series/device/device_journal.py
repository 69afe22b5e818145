"""The journal of a series on a device, which records a step when the device has finished it.

The host launches a forward long before the device runs it, and a device's instants can be read only
once the device has passed them. So a step's events are noted on a *sheet* while it is launched. Its records
are written when the device has finished it: by the launching thread, at the end of a later step, without
ever waiting. Steps are recorded whole and in order.

A step that is not timed, or whose instants are unavailable, has only its STEP record, which counts it and gives the
reason. If it was left out by sampling, or because the device was too far behind, the record also says when it ran,
as far as that is known. No instant is invented.

The window table is the exception: it shows what the host has launched, by the host's clock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from swtrace.series.device.accelerator import COUNTER_RANGE
from swtrace.series.device.event_clock import EventClock
from swtrace.series.device.sheets import Entry, Marks, Sheet, SheetPool, TransferEvents
from swtrace.series.journal import Journal, Sampling, record_requests
from swtrace.trace.machine import MachineNoise
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Stage, StepFlag, TransferFlag, Untimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.series.device.accelerator import Device
    from swtrace.series.device.stamps import Shipment, Stamps
    from swtrace.series.layer import SeriesLayer, Window
    from swtrace.series.transport import Operation
    from swtrace.trace.recorder import SeriesRecorder
    from swtrace.trace.request_link import RequestLink

SHEETS = 8
"""Steps that the host may be ahead of the device before a step is left untimed."""
CLOSE_PATIENCE_S = 10.0
"""How long :meth:`DeviceJournal.closes` waits for the device to finish its work."""
_CLOSE_POLL_S = 0.001
LOOK_S = 0.25
"""How often a thread looks how far the device has come. It reads host memory and calls nothing of the device."""

ISSUED, READY, WAIT_BEGIN = range(3)
"""Indexes of the three stamps of a captured transfer."""
STAMPS = 3

_OWN = int(TransferFlag.OWN)
_OPEN = int(TransferFlag.OPEN)
_PREFILLED = int(TransferFlag.PREFILLED)
_CROSSES = int(TransferFlag.CROSSES_STEPS)
_UNWAITED = int(TransferFlag.UNWAITED)
_EVENT = int(Observed.EVENT)
_STAMP = int(Observed.STAMP)
_UPPER_BOUND = int(Observed.UPPER_BOUND)
_NEVER = int(Observed.NEVER)
_DEVICE = int(Clock.DEVICE)
_DATED = {Untimed.SAMPLED, Untimed.BUSY}
"""Reasons to leave a step untimed whose events still show when it ran."""


class _Ended(NamedTuple):
    """A step that was launched completely."""

    step: int
    links: Sequence[RequestLink]
    fields: dict[str, int]
    """Further fields of its record."""
    marks: Marks | None
    untimed: Untimed
    shipment: Shipment | None
    """The stamps of the replayed graph."""
    stamped: tuple[Entry, ...]
    """The transfers in that graph."""


class DeviceJournal(Journal[TransferEvents]):
    """Writes a series' records to the rank's ring, with the device's own instants."""

    def __init__(
        self,
        series: SeriesRecorder,
        device: Device,
        num_layers: int,
        *,
        every: int,
        stamps: Stamps | None,
    ) -> None:
        """Create all events in advance.

        Args:
            series: the recorder of the series.
            device: the device that the series runs on.
            num_layers: L.
            every: one step in so many is timed; see :class:`~swtrace.series.journal.Sampling`.
            stamps: times the transfers of captured graphs, with ``STAMPS`` slots per position; None leaves steps
                that replay a graph untimed.
        """
        self._series = series
        self._device = device
        self._now = device.host_ns
        self._times = Sampling(every).times
        self._pool = SheetPool(device, num_layers, SHEETS)
        self._clock = EventClock(device)
        self.stamps = stamps
        self._machine = MachineNoise()
        self._open: dict[int, Marks | None] = {}
        """By number, the unfinished steps that a broadcast was issued for, at most two."""
        self._reasons: dict[int, Untimed] = {}
        """Why those without a sheet have none."""
        self._launched: deque[_Ended] = deque()
        """Steps that the host has finished, oldest first."""
        self._step = -1
        """The last step that has arrived."""
        self._replayed: tuple[Entry, ...] = ()
        """The transfers in the graph that the present step replayed."""
        self._shipment: Shipment | None = None
        """Their stamps."""
        self._unobserved = False
        """Whether the replay was detected only afterwards."""
        self._last_position = num_layers - 1
        self._counter = device.counter()
        """Shows how many steps the device has completed, up to the wait for their last layer."""
        self._counted = 0
        """The steps that it will show, once the device has caught up."""
        self._completed = 0
        self._closing = threading.Event()
        threading.Thread(
            target=_watch, args=(weakref.ref(self), self._closing), name="swtrace-device-watch", daemon=True
        ).start()

    # ---- while the forward is launched ---------------------------------------------------------

    def issues(self, layer: SeriesLayer) -> TransferEvents | None:
        """Enter the broadcast in the window table; return the events to record around it."""
        layer.issued_ns = self._now()
        self._series.issued(layer.operation_number + 1, layer.issued_ns)
        window = layer.window
        if not layer.owned and window is not None:
            layer.generation = self._series.window_issued(window.index, layer.step, layer.position, layer.issued_ns)
        sheet = self._sheet(layer.step)
        return sheet.transfer(layer.position) if sheet is not None else None

    def waits(self, layer: SeriesLayer) -> None:
        """Record on the caller's stream that it needs the layer."""
        sheet = self._sheet(self._step)
        if sheet is not None:
            layer.wait_ns = self._now()
            sheet.wait(layer.position, self._device.current_stream())
        if layer.owned and layer.position == self._last_position:
            self._count(self._step)

    def waited(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Note a receiver's transfer, whose instants follow later."""
        if layer.position == self._last_position:
            self._count(self._step)
        window = layer.window
        if window is None:
            return
        if operation is None:
            self._note(layer, _PREFILLED)
            return
        self._series.window_in_use(window.index, layer.generation, self._now())
        self._note(layer, 0)

    def finished_without_wait(self, layer: SeriesLayer, operation: Operation | None) -> None:  # noqa: ARG002 (the sheet has it)
        """Note a source's transfer, or one without a wait."""
        flags = _OWN if layer.owned else 0
        if not (layer.owned and layer.waited_step == layer.step):
            flags |= _UNWAITED
        self._note(layer, flags | (_PREFILLED if layer.prefilled else 0))

    def left_open(self, layer: SeriesLayer, operation: Operation) -> None:  # noqa: ARG002 (the sheet has it)
        """Note a transfer of a step that will never run, which is recorded when the journal closes."""
        self._note(layer, _UNWAITED | _OPEN | (_OWN if layer.owned else 0))

    def _note(self, layer: SeriesLayer, flags: int) -> None:
        sheet = self._sheet(layer.step)
        if sheet is None:
            return
        if layer.issued_step != layer.step and not flags & _PREFILLED:
            flags |= _CROSSES
        window = NO_WINDOW if layer.owned or layer.window is None else layer.window.index
        sheet.entries.append(
            Entry(
                layer.position,
                layer.operation_number,
                layer.reach_position,
                layer.source,
                window,
                flags,
                layer.issued_ns,
                layer.wait_ns,
            )
        )

    def leaves(self) -> None:
        """Mark that the host is in no step."""
        self._series.enter_stage(Stage.BETWEEN, self._now())

    def freed(self, window: Window) -> None:
        """Clear the window's entry in the window table."""
        self._series.window_freed(window.index)

    def begins(self) -> None:
        """Record the beginning of the next step, and mark that the host is in a step."""
        self._series.enter_stage(Stage.BEGUN, self._now())
        marks = self._marks(self._step + 1)
        if marks is not None:
            marks.record(marks.begin, self._device.current_stream())
            marks.marked = True

    def arrives(self, step: int, *, marked: bool) -> None:
        """Record the arrival at the first layer, and mark that the host is in a step."""
        self._step = step
        self._series.enter_stage(Stage.MARKED if marked else Stage.UNMARKED, self._now())
        marks = self._marks(step)
        if marks is not None:
            marks.marked = marked
            marks.record(marks.arrival, self._device.current_stream())

    def ends(self) -> None:
        """Record the end of the forward."""
        marks = self._marks(self._step)
        if marks is not None:
            marks.record(marks.end, self._device.current_stream())

    def stepped(self, step: int, links: Sequence[RequestLink], **fields: int) -> None:
        """Keep the step until the device has finished it; write the steps that the device has finished."""
        marks = self._marks(step)
        del self._open[step]
        untimed = self._reasons.pop(step, Untimed.TIMED)
        stamped, self._replayed = self._replayed, ()
        shipment, self._shipment = self._shipment, None
        if stamped and shipment is None and untimed is Untimed.TIMED:
            untimed = Untimed.REPLAY if self.stamps is None or self._unobserved else Untimed.BUSY
        self._unobserved = False
        fields["run_delay_us"], fields["steal_us"] = self._machine.sample()
        self._launched.append(_Ended(step, links, fields, marks, untimed, shipment, stamped))
        self._count(step)
        self._series.enter_stage(Stage.BETWEEN, self._now())
        self.write_finished()

    # ---- while a graph is captured, and replayed -------------------------------------------------

    def captures_issue(self, layer: SeriesLayer) -> None:
        """Stamp the issue in the graph."""
        self._stamp(layer, ISSUED)

    def captures_ready(self, layer: SeriesLayer) -> None:
        """Stamp the end of the broadcast in the graph."""
        self._stamp(layer, READY)

    def captures_wait(self, layer: SeriesLayer) -> None:
        """Stamp the beginning of the wait in the graph."""
        self._stamp(layer, WAIT_BEGIN)

    def _stamp(self, layer: SeriesLayer, which: int) -> None:
        if self.stamps is not None:
            self.stamps.stamp(layer.position * STAMPS + which)

    def replays(self, transfers: tuple[Entry, ...]) -> None:
        """Ship the stamps of the graph that was just replayed to the host, and clear the row."""
        self._replayed = transfers
        if transfers:
            self._series.issued(transfers[-1].operation + 1, self._now())
        self._count(self._step)
        if self.stamps is None:
            return
        shipment = self.stamps.ship()
        if self._unobserved or self._sheet(self._step) is None:
            if shipment is not None:
                shipment.release()  # unread; but its values must not be taken for the next replay's
            return
        self._shipment = shipment

    def unobserved(self) -> None:
        """Leave this step untimed, because its events were recorded too late."""
        self._unobserved = True

    def _sheet(self, step: int) -> Sheet | None:
        """Return the sheet of a step, taking one on the first call; None if the step is not timed."""
        marks = self._marks(step)
        return marks if isinstance(marks, Sheet) else None

    def _marks(self, step: int) -> Marks | None:
        """Return a step's sheet, or its marks if it is not timed; None if the device is too far behind for both."""
        try:
            return self._open[step]
        except KeyError:
            pass
        marks: Marks | None = None
        if not self._times(step):
            self._reasons[step] = Untimed.SAMPLED
        else:
            marks = self._pool.take_sheet()
            if marks is None:
                self._reasons[step] = Untimed.BUSY
        if marks is None:
            marks = self._pool.take_marks()
        self._open[step] = marks
        return marks

    def _count(self, step: int) -> None:
        """Have the device count a step once it has run all work launched so far, unless it will already."""
        if self._counted <= step and not self._device.capturing():
            self._counter.show(step + 1)
            self._counted = step + 1

    def look(self) -> None:
        """Mark how many steps the device has completed, if that is news, or if the device has nothing left to do."""
        counted = self._counted
        completed = counted - (counted - self._counter.shown()) % COUNTER_RANGE
        if completed > self._completed or completed == counted:
            self._completed = completed
            self._series.completed(completed, self._now())

    # ---- when the device has finished a step ---------------------------------------------------

    def write_finished(self) -> None:
        """Write all leading steps that the device has finished. Never waits; does nothing during a capture."""
        if self._device.capturing():
            return
        self._clock.renew_if_due(self._now())
        if self.stamps is not None:
            self.stamps.clock.renew_if_due(self._now())
        while self._launched and self._passed(self._launched[0]):
            self._write(self._launched.popleft())

    def closes(self) -> None:
        """Write all remaining steps; wait for the device up to :data:`CLOSE_PATIENCE_S`. Mark the series as closed."""
        self._closing.set()
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        self.write_finished()
        while self._launched and time.monotonic() < deadline:
            time.sleep(_CLOSE_POLL_S)
            self.write_finished()
        while self._launched:
            self._write(self._launched.popleft()._replace(untimed=Untimed.UNFINISHED, marks=None, shipment=None))
        for step in sorted(self._open):
            self._write_open(step, self._open[step])
        self._open.clear()
        self._series.close()

    @staticmethod
    def _passed(ended: _Ended) -> bool:
        if ended.marks is not None and not ended.marks.passed():
            return False
        return ended.shipment is None or ended.shipment.done()

    def _write(self, ended: _Ended) -> None:
        marks, untimed = ended.marks, ended.untimed
        if untimed is Untimed.TIMED and not self._anchored(ended):
            untimed = Untimed.NO_ANCHOR
        if untimed is Untimed.TIMED and not self._stamps_written(ended):
            untimed = Untimed.REPLAY
        if untimed is Untimed.TIMED and isinstance(marks, Sheet):
            self._write_timed(ended, marks)
        elif untimed in _DATED and marks is not None and self._clock.ready:
            self._write_step(ended, marks, self._clock.to_host(marks.arrival), 0, untimed)
        else:
            self._record_step(ended, 0, 0, 0, untimed)
        if ended.shipment is not None:
            ended.shipment.release()
        if marks is not None:
            self._pool.give_back(marks)

    def _anchored(self, ended: _Ended) -> bool:
        """Return whether the clocks that timed the step are mapped to the host's."""
        if ended.shipment is not None and self.stamps is not None and not self.stamps.clock.ready:
            return False
        return self._clock.ready

    @staticmethod
    def _stamps_written(ended: _Ended) -> bool:
        """Return whether a graph with stamps was replayed; otherwise the row stays cleared."""
        if ended.shipment is None:
            return True
        instants = ended.shipment.instants()
        return all(
            instants[entry.position * STAMPS + ISSUED] and instants[entry.position * STAMPS + READY]
            for entry in ended.stamped
        )

    def _write_timed(self, ended: _Ended, sheet: Sheet) -> None:
        arrival_ns = self._clock.to_host(sheet.arrival)
        end_ns = arrival_ns
        for entry in sheet.entries:
            end_ns = max(end_ns, self._transfer(ended.step, sheet, entry, arrival_ns))
        if ended.shipment is not None and self.stamps is not None:
            end_ns = max(end_ns, self._stamped(ended.step, ended.shipment.instants(), ended.stamped, self.stamps))
        self._write_step(ended, sheet, arrival_ns, end_ns, Untimed.TIMED)

    def _transfer(self, step: int, sheet: Sheet, entry: Entry, arrival_ns: int) -> int:
        """Write the record of a transfer that was timed by events; return when its wait ended."""
        position, flags = entry.position, entry.flags
        begin_ns = arrival_ns + sheet.wait_ns(position) if position in sheet.waited else 0
        if flags & _PREFILLED:
            observed = _UPPER_BOUND if begin_ns else _NEVER
            self._record(step, entry, begin_ns, begin_ns, begin_ns, begin_ns, observed)
            return begin_ns
        issued_ns = arrival_ns + sheet.issued_ns(position)
        ready_ns = arrival_ns + sheet.ready_ns(position)
        end_ns = begin_ns if not begin_ns or flags & _OWN else max(begin_ns, ready_ns)
        if flags & _UNWAITED:
            begin_ns = end_ns = 0
        self._record(step, entry, issued_ns, ready_ns, begin_ns, end_ns, _EVENT)
        if end_ns > begin_ns:  # stalled: was it launched too late?
            self._series.launch(
                entry.issue_launched_ns, entry.wait_launched_ns, step, entry.operation, position, entry.source
            )
        return end_ns

    def _stamped(self, step: int, instants: list[int], entries: tuple[Entry, ...], stamps: Stamps) -> int:
        """Write the records of the transfers in a replayed graph; return when the last wait ended."""
        first = entries[0].position * STAMPS + ISSUED
        offset_ns = stamps.clock.to_host(instants[first]) - instants[first]
        last_ns = 0
        for entry in entries:
            at = entry.position * STAMPS
            issued_ns, ready_ns, begin_ns = (instant + offset_ns for instant in instants[at : at + STAMPS])
            end_ns = begin_ns if entry.flags & _OWN else max(begin_ns, ready_ns)
            if not instants[at + WAIT_BEGIN]:  # the captured forward skipped the linear
                entry = entry._replace(flags=entry.flags | _UNWAITED)  # noqa: PLW2901
                begin_ns = end_ns = 0
            self._record(step, entry, issued_ns, ready_ns, begin_ns, end_ns, _STAMP)
            last_ns = max(last_ns, end_ns)
        return last_ns

    def _write_open(self, step: int, sheet: Marks | None) -> None:
        """Write the transfers of a step that will never run, as far as the device got."""
        if not isinstance(sheet, Sheet) or not sheet.entries or not self._clock.ready:
            return
        passed = sheet.passed()
        for entry in sheet.entries:
            events = sheet.events(entry.position)
            issued_ns = self._clock.to_host(events.issued) if events.issued.query() else 0
            ready_ns = self._clock.to_host(events.ready) if passed else 0
            self._record(step, entry, issued_ns, ready_ns, 0, 0, _EVENT if passed else _NEVER)

    def _record(
        self, step: int, entry: Entry, issued_ns: int, ready_ns: int, begin_ns: int, end_ns: int, observed: int
    ) -> None:
        self._series.transfer(
            issued_ns,
            ready_ns,
            begin_ns,
            end_ns,
            step,
            entry.operation,
            entry.position,
            entry.reach_position,
            entry.source,
            entry.window,
            observed,
            entry.flags,
            _DEVICE,
        )

    def _write_step(self, ended: _Ended, marks: Marks, arrival_ns: int, waited_ns: int, untimed: Untimed) -> None:
        """Write a step from its marks; an implicit end has no mark and counts as the end of the last wait."""
        begin_ns = arrival_ns + marks.since_arrival(marks.begin) if marks.marked else arrival_ns
        end_ns = max(arrival_ns, waited_ns)
        if not ended.fields["flags"] & StepFlag.IMPLICIT_END:
            end_ns = arrival_ns + marks.since_arrival(marks.end)
        self._record_step(ended, begin_ns, arrival_ns, end_ns, untimed)

    def _record_step(self, ended: _Ended, begin_ns: int, arrival_ns: int, end_ns: int, untimed: Untimed) -> None:
        if untimed is Untimed.TIMED:
            record_requests(self._series, begin_ns, ended.links, ended.step)
        self._series.step(
            begin_ns=begin_ns,
            arrival_ns=arrival_ns,
            end_ns=end_ns,
            step=ended.step,
            untimed=int(untimed),
            clock=_DEVICE,
            **ended.fields,
        )


def _watch(journal: weakref.ref[DeviceJournal], closing: threading.Event) -> None:
    """Look how far the device has come, until the journal is closed or gone."""
    while not closing.wait(LOOK_S):
        looking = journal()
        if looking is None:
            return
        looking.look()
        del looking
