"""The circle on a device: eagerly as on a host, and through graphs that were captured from whole forwards.

A graph replays what a forward launched, without its Python. So the graph's work and the circle's work around
each replay must together be one step of the circle, in the circle's order:

- Before the replay, the stream waits for the first ``k`` layers, which the previous step issued.
- In the graph, the other ``L - k`` layers are issued and waited for, on the same two streams as in eager mode.
- After the replay, the first ``k`` layers are issued for the next step. In the graph they would delay its end,
  because a graph ends only when all of its work has.

So the broadcasts of a replayed step have the same order as in an eager step. Whether one rank may replay what
another runs eagerly depends on the communicator; NCCL does not promise it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swtrace.errors import OrderError
from swtrace.series.circle import NOT_RUNNING, Batch, Circle
from swtrace.series.device.sheets import Entry, TransferEvents
from swtrace.trace.schema import NO_WINDOW, StepFlag, TransferFlag

if TYPE_CHECKING:
    from swtrace.series.device.device_transport import DeviceTransport
    from swtrace.series.journal import Journal
    from swtrace.series.layer import SeriesLayer, Window


class DeviceCircle(Circle[TransferEvents]):
    """Runs the steps of a series on a device."""

    captures_graphs = True

    def __init__(
        self,
        where: str,
        layers: Sequence[SeriesLayer],
        windows: tuple[Window, ...],
        prefetch_step: int,
        transport: DeviceTransport,
        journal: Journal[TransferEvents],
        describe_loss: Callable[[SeriesLayer | None, RuntimeError], str],
        *,
        rolling: bool,
    ) -> None:
        """Begin before the first step; see :class:`~swtrace.series.circle.Circle`."""
        super().__init__(where, layers, windows, prefetch_step, transport, journal, describe_loss, rolling=rolling)
        self._transport = transport
        self._device = device = transport.device
        self._prefetch_step = prefetch_step
        self._ordered = tuple(sorted(self._layers.values(), key=lambda layer: layer.position))
        for buffer in (*(window.buffer for window in self._windows), *(layer.buffer for layer in self._ordered)):
            if buffer is not None:
                device.hold(buffer, transport.stream)
        # For captured work only, because a captured event has no meaning outside its graph.
        self._fork = device.event(timed=False)
        self._done = tuple(device.event(timed=False) for _ in self._ordered)
        self._joined = device.event(timed=False)
        self._drained = device.event(timed=False)

        self._capturing = False
        self._captured_next = 0
        """While capturing, the position that is reached next."""
        self._captured_waits: set[int] = set()
        self._next_outside = 0
        """While capturing, the next position from before the capture."""
        self._replaying = False
        self._graph_ahead = False
        """Whether a graph was announced outside a marked step; it may be captured next, or replayed without notice."""
        self.captures = 0
        """Number of graphs captured from a whole forward."""
        self._graph_waits = 0
        """The fewest waits in any of them, because it is unknown which one is replayed."""

    # ---- capture -------------------------------------------------------------------------------

    def _enter(self, layer_idx: int, position: int) -> bool:
        self._drop_broken_capture()
        if self._capturing and position == 0 and self._captured_next < self._num_layers:
            self._end_capture()  # it broke off, and another one has begun
        if self._capturing or (position == 0 and not self._refusal and not self._closed and self._device.capturing()):
            self._capture_reach(layer_idx, position)
            return False
        if self._replaying:
            raise OrderError(f"{self._where}, layer {layer_idx}: reached while a graph is replayed")
        self._account_for_announced_graph()
        return super()._enter(layer_idx, position)

    def _begin_capture(self) -> None:
        if self._rolling:
            raise OrderError(
                f"{self._where}: the pointers of rolling windows change from step to step, so a graph would read stale "
                f"weights; set SWTRACE_WINDOWS=static"
            )
        if 0 < self._next < self._num_layers or self._replaying:
            raise OrderError(f"{self._where}: a graph was captured in the middle of step {self._step}")
        self._graph_ahead = False
        self._capturing = True
        self._captured_next = 0
        self._captured_waits.clear()
        self._next_outside, self._next = self._next, NOT_RUNNING

    def _drop_broken_capture(self) -> None:
        """Detect a capture that broke off, whose work is never replayed."""
        if self._capturing and not self._device.capturing():
            self._end_capture()

    def _end_capture(self) -> None:
        self._capturing = False
        self._next = self._next_outside

    def _capture_reach(self, layer_idx: int, position: int) -> None:
        if not self._capturing:
            self._begin_capture()
        if position != self._captured_next:
            raise OrderError(
                f"{self._where}, layer {layer_idx}: reached out of order while a graph is captured; "
                f"layer {self._indexes[self._captured_next % self._num_layers]} comes next"
            )
        self._captured_next = position + 1
        if position + self._prefetch_step >= self._num_layers:
            return  # issued after each replay
        layer = self._targets[position]
        buffer = layer.buffer if layer.owned else layer.window.buffer  # type: ignore[union-attr]
        self._journal.captures_issue(layer)
        self._fork.record(self._device.current_stream())
        stream = self._transport.stream
        stream.wait_event(self._fork)
        with self._device.on(stream):
            self._transport.move(buffer, layer)  # type: ignore[arg-type]
            # The consumer waits for the bytes, not for the stamp that times them.
            self._done[layer.position].record(stream)
            self._journal.captures_ready(layer)

    def _wait_elsewhere(self, layer_idx: int) -> None:
        layer = self._layers.get(layer_idx)
        if not self._capturing or layer is None or layer.position >= self._captured_next:
            super()._wait_elsewhere(layer_idx)
            return
        if layer.position in self._captured_waits:
            return
        self._captured_waits.add(layer.position)
        if layer.position < self._prefetch_step:
            if not layer.owned:
                self._journal.captures_waited(layer)
            return  # waited for before each replay
        self._journal.captures_wait(layer)
        if not layer.owned:
            self._device.current_stream().wait_event(self._done[layer.position])
            self._journal.captures_waited(layer)

    def join(self) -> None:
        """End the capture of a forward: join the prefetch stream to the captured one. Do nothing outside a capture.

        Raises:
            OrderError: the graph holds only part of a forward.
        """
        if not self._capturing:
            return
        reached = self._captured_next
        self._end_capture()
        stream = self._transport.stream
        self._joined.record(stream)
        self._device.current_stream().wait_event(self._joined)
        if reached != self._num_layers:
            raise OrderError(
                f"{self._where}: a graph was captured from {reached} of {self._num_layers} layers: capture whole "
                f"forwards, or keep reach and wait between the graphs (as splitting ops of torch.compile)"
            )
        self.captures += 1
        waits = sum(position >= self._prefetch_step for position in self._captured_waits)
        self._graph_waits = waits if self.captures == 1 else min(waits, self._graph_waits)

    # ---- replay --------------------------------------------------------------------------------

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Wrap the replay of a graph that was captured from a whole forward: the replay is one step."""
        self._begin_replay()
        try:
            yield
        except BaseException:
            self._replaying = False
            self._next = 0  # it is unknown which broadcasts of this step were issued
            raise
        self._end_replay()

    def announce_graph(self) -> None:
        """Announce that a graph of a whole forward is captured or replayed next, if its end cannot be marked.

        In a marked step it is a replay, which ends with the step. Elsewhere the next call decides which it was.
        """
        self._drop_broken_capture()
        self._require_running()
        self._account_for_announced_graph()
        if self._marked and not self._in_step:
            self._begin_replay()
            return
        self._graph_ahead = True
        self._order_leftovers()

    @property
    def running(self) -> bool:
        """Whether steps can still be run."""
        return self._replaying or self._capturing or super().running

    def begin_step(self, batch: Batch) -> None:
        """Mark the beginning of a forward. A step that is still open is ended first."""
        self._account_for_unmarked()
        super().begin_step(batch)

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and issue its remaining broadcasts."""
        self._account_for_unmarked()
        super().end_step(aborted=aborted)

    def close(self) -> None:
        """End the series; see :meth:`~swtrace.series.circle.Circle.close`."""
        if self._capturing:
            self._end_capture()
        self._account_for_unmarked()
        super().close()

    def _account_for_unmarked(self) -> None:
        """Account for what had no mark of its own: a capture that broke off, or a replay that has ended."""
        self._drop_broken_capture()
        if self._replaying:
            self._end_replay()
        self._account_for_announced_graph()

    def _account_for_announced_graph(self) -> None:
        """Account for a graph that was announced but not captured, and so has been replayed."""
        if not self._graph_ahead:
            return
        self._graph_ahead = False
        if not self.captures or self._refusal or self._closed:
            return
        self._begin_replay()
        self._journal.unobserved()
        self._end_replay()

    def _begin_replay(self) -> None:
        self._drop_broken_capture()
        self._require_running()
        if not self.captures:
            raise OrderError(f"{self._where}: a graph was replayed, but none was captured from a whole forward")
        if self._replaying or 0 < self._next < self._num_layers:
            raise OrderError(f"{self._where}: a graph was replayed in the middle of step {self._step}")
        if self._in_step:
            self._end(StepFlag.IMPLICIT_END)
        self._open_step()
        self._next = self._prefetch_step
        for layer in self._ordered[: self._prefetch_step]:
            self.wait(layer.layer_idx)
        self._order_leftovers()
        self._replaying = True
        self._next = NOT_RUNNING

    def _order_leftovers(self) -> None:
        """Make the stream wait for every broadcast under way, before a graph is launched on it.

        A graph's broadcasts are ordered only with the caller's stream, which has not waited for the sends of this
        rank's own layers or those of a failed forward. But a communicator runs one operation at a time, in the same
        order on all ranks.
        """
        self._drained.record(self._transport.stream)
        self._device.current_stream().wait_event(self._drained)

    def _end_replay(self) -> None:
        """Account for the graph's broadcasts in this step, and issue the remaining ones."""
        k, step = self._prefetch_step, self._step
        self._replaying = False
        transfers = []
        for layer in self._ordered[k:]:
            flags = 0
            window = NO_WINDOW
            if layer.owned:
                flags = int(TransferFlag.OWN)
            elif layer.window is not None:
                window = layer.window.index
                layer.window.occupant = layer
            layer.operation = None
            layer.prefilled = False
            layer.step = layer.issued_step = layer.waited_step = layer.recorded_step = step
            layer.reach_position = layer.position - k
            layer.operation_number = self.operations
            self.operations += 1
            transfers.append(
                Entry(layer.position, layer.operation_number, layer.reach_position, layer.source, window, flags)
            )
        self._waits += self._graph_waits
        self._journal.replays(tuple(transfers))
        for reach_position in range(self._num_layers - k, self._num_layers):
            self._next = reach_position + 1
            self._issue(reach_position)
        self._next = self._num_layers
