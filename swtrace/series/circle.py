"""The running series: reach, wait and steps on one rank, once every layer is in its place.

Two invariants hold:

- **Every step issues exactly one broadcast per layer, in the order of the circle, on every rank**, whatever the
  forward did. If a forward fails midway, its remaining broadcasts are issued before the next step begins. So the
  ranks' operations always match, and the first ``k`` windows always hold what the next step reads first.
- A buffer enters a new broadcast only after the previous broadcast that used it was waited for: by the linear, or
  by the runtime if no linear waited (the broadcast is *reaped*).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn

import torch

from swtrace import placement
from swtrace.errors import OrderError, PeerLostError, StaleWindowError
from swtrace.series.operations import run_outside
from swtrace.series.transport import Observer
from swtrace.trace.schema import Clock, Phase, StepFlag

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.journal import Journal
    from swtrace.series.keeping import Keeper
    from swtrace.series.layer import SeriesLayer, Window
    from swtrace.series.transport import Operation, Transport
    from swtrace.trace.request_link import RequestLink

logger = logging.getLogger(__name__)

_UNWAITED = (
    "swtrace: %s: a step did not wait for %d of %d layers: either the model did not use them, or it read them where "
    "swtrace cannot wait (in compiled code that does not call the linear itself, or in a forward or a module that "
    "replaced the linear's). If it read them, its results are wrong"
)
_UNWAITED_IN_GRAPH = (
    "%s: step %d: compiled code did not wait for %d of %d layers: either the model does not use them, or it reads "
    "their weights without a wait (through parameters() or a kept reference), and its results may be wrong. Leave "
    "unused layers out of the series; call the linear itself, or read the attribute"
)

CLOSE_PATIENCE_S = 10.0
"""How long :meth:`Circle.close` waits for this rank's sends to complete."""
ABORT_PATIENCE_S = 5.0
"""How long the end of a failed forward waits for peers. Its error must be reported, whatever they do."""
_POLL_S = 0.001

NOT_A_LAYER = -2
"""Instead of the position of what is not a layer of the series."""
NOT_RUNNING = -1
"""Instead of the next position: sends every reach and wait to the slow path, which raises the reason."""


class Batch(NamedTuple):
    """What a step works on, as far as its caller says."""

    phase: Phase = Phase.OTHER
    tokens: int = 0
    requests: int = 0
    links: Sequence[RequestLink] = ()
    """Trace contexts of the requests, as far as they are traced."""


class Circle(Generic[Observer]):
    """Runs the steps of a series on one rank."""

    unwaited_warning = _UNWAITED
    """What the log says about the first step that leaves layers without a wait."""
    captures_graphs = False
    """Whether a forward can be captured into a graph, which then holds one wait per layer."""

    def __init__(
        self,
        where: str,
        layers: Sequence[SeriesLayer],
        windows: tuple[Window, ...],
        prefetch_step: int,
        transport: Transport[Observer],
        journal: Journal[Observer],
        describe_loss: Callable[[SeriesLayer | None, RuntimeError], str],
        *,
        rolling: bool,
    ) -> None:
        """Begin before the first step.

        Args:
            where: names series and rank in errors.
            layers: by position, each in its place.
            windows: this rank's; those of the first ``k`` layers are filled.
            prefetch_step: k.
            transport: the series' own; no operation issued yet.
            journal: notified of everything that happens.
            describe_loss: returns what a failed broadcast means.
            rolling: whether each issue takes the next window; otherwise each layer has a fixed one.
        """
        count = len(layers)
        self._where = where
        self._layers = {layer.layer_idx: layer for layer in layers}
        self._owned = tuple(layer for layer in layers if layer.owned)
        self._num_layers = count
        self._indexes = tuple(layer.layer_idx for layer in layers)
        self._positions = {layer.layer_idx: layer.position for layer in layers}
        self._targets = tuple(layers[placement.prefetch_target(p, prefetch_step, count)] for p in range(count))
        """``[reach position]``: the layer whose broadcast starts there."""
        self._windows = windows
        self._rolling = rolling
        self._roll = prefetch_step % len(windows) if rolling else 0
        """The window of the next issue, if windows roll."""
        self._start = transport.issue
        self._holds_host = transport.clock is Clock.HOST
        """Whether waiting for a broadcast blocks this thread. (On a device only streams wait. In virtual time polling
        would never end, because no time passes.)"""
        self._journal = journal
        self._describe_loss = describe_loss
        self._refusal = ""
        """Why every call is refused, after a peer was lost; empty before."""
        self._closed = False

        self._next = 0
        """The position that the forward reaches next; all before it were reached in this step."""
        self._in_step = False
        self._marked = False
        """Whether :meth:`begin_step` began the step."""
        self._step = -1
        self._thread = 0
        """The thread that began the step."""
        self._waits = 0
        self._batch = Batch()

        self.operations = 0
        """Broadcasts issued."""
        self.aborted_steps = 0
        self.keeper: Keeper | None = None
        """Handles references that others hold to weights, in plain torch; see :mod:`swtrace.series.keeping`."""
        self.compiled = False
        """Whether compiled code reaches the layers. It may read weights without waiting: see :meth:`_write_step`."""
        self.most_unwaited = 0
        """The most layers that a step left without a wait; aborted steps do not count."""

    @property
    def steps(self) -> int:
        """Number of steps that have ended."""
        return self._step + 1 - self._in_step

    @property
    def running(self) -> bool:
        """Whether steps can still be run."""
        return self._next != NOT_RUNNING

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def arrived(self) -> int | None:
        """The layer that the forward reached last; None if it has reached none."""
        if self._in_step and self._next > 0:
            return self._indexes[self._next - 1]
        return self._indexes[-1] if self.steps else None

    # ---- layer by layer ----------------------------------------------------------------------

    def reach(self, layer_idx: int) -> None:
        """Start the broadcast of the layer ``k`` ahead, because the forward has arrived at ``layer_idx``.

        Reaching the first layer begins a step.

        Raises:
            OrderError: the layer is not the next one.
            PeerLostError: a broadcast failed.
        """
        position = self._positions.get(layer_idx, NOT_A_LAYER)
        if (position != self._next or position == 0) and not self._enter(layer_idx, position):
            return
        self._next = position + 1
        self._issue(position)

    def wait(self, layer_idx: int) -> None:
        """Block until a layer's weight may be read. A second wait in the same step returns at once.

        Raises:
            OrderError: the forward has not reached the layer in this step.
            StaleWindowError: the layer's window was given to another layer or is being filled again, or the layer's
                tensors were moved or written to.
            PeerLostError: its broadcast failed.
        """
        layer = self._layers.get(layer_idx)
        if layer is None or layer.position >= self._next:
            self._wait_elsewhere(layer_idx)
            return
        step = self._step
        if not layer.owned and (layer.step != step or layer.window.occupant is not layer):  # type: ignore[union-attr]
            self._refuse_stale(layer)
        if layer.waited_step == step:
            return
        for tensor, pointer, version in layer.memory:
            if tensor.data_ptr() != pointer or (version is not None and tensor._version != version):  # noqa: SLF001
                self._refuse_changed(layer, tensor, moved=tensor.data_ptr() != pointer)
        if layer.owned:
            self._require_placed(layer)
        self._journal.waits(layer)
        # The source's copy is never overwritten, so the source reads it at once, even while its send is under way.
        if not layer.owned:
            operation = layer.operation
            if operation is not None:
                self._await(layer, operation)
                layer.operation = None
            self._journal.waited(layer, operation)
            layer.recorded_step = step
        layer.waited_step = step
        self._waits += 1

    def _await(self, layer: SeriesLayer, operation: Operation) -> None:
        """Wait for a layer's broadcast. While that blocks the host, the ring says so."""
        blocks = self._holds_host and not operation.ready_ns and not operation.done()
        if blocks:
            self._journal.blocks(layer)
        try:
            operation.wait()
        except RuntimeError as error:
            self._lose(layer, error)
        finally:
            if blocks:
                self._journal.unblocks()

    def _issue(self, reach_position: int) -> None:
        """Start the broadcast that belongs to a reach position."""
        layer = self._targets[reach_position]
        if not layer.owned:
            buffer = self._window_for(layer)
        else:
            buffer = layer.buffer  # type: ignore[assignment]
            if self._rolling:
                self._free(self._take_window())
        if layer.operation is not None:
            self._reap(layer)
        if layer.recorded_step != layer.step:
            self._finish_without_wait(layer, None)
        step = self._step
        layer.prefilled = False
        layer.issued_step = step
        layer.step = step if layer.position >= reach_position else step + 1
        layer.reach_position = reach_position
        layer.operation_number = self.operations
        observer = self._journal.issues(layer)
        try:
            layer.operation = self._start(buffer, layer, observer)
        except RuntimeError as error:
            self._lose(layer, error)
        self.operations += 1

    def _window_for(self, layer: SeriesLayer) -> Tensor:
        """Return the buffer that receives a layer, after evicting its previous occupant."""
        window: Window = self._take_window() if self._rolling else layer.window  # type: ignore[assignment]
        occupant = window.occupant
        if occupant is not None:
            self._evict(occupant)
        keeper = self.keeper
        if layer.memory[0][1] != window.pointers[0] and not (keeper is not None and keeper.keeps(layer)):
            if keeper is not None:
                keeper.moved(layer, window)
            layer.point_into(window)
        layer.window = window
        window.occupant = layer
        return window.buffer

    def _take_window(self) -> Window:
        window = self._windows[self._roll]
        self._roll = (self._roll + 1) % len(self._windows)
        return window

    def _free(self, window: Window) -> None:
        """Leave a window empty, because its turn fell to a layer that this rank owns."""
        occupant = window.occupant
        if occupant is None:
            return
        self._evict(occupant)
        window.occupant = None
        self._journal.freed(window)

    def _evict(self, occupant: SeriesLayer) -> None:
        """Finish with a layer in a window, whose bytes are no longer needed."""
        if occupant.operation is not None:
            self._reap(occupant)
        if self.keeper is not None:
            self.keeper.leave(occupant)
        if occupant.in_autograd and not occupant.kept:
            occupant.outdate()

    def _reap(self, layer: SeriesLayer) -> None:
        """Wait for a broadcast that no linear waited for: a source's send, or one of a failed forward."""
        operation = layer.operation
        if operation is None:
            return
        self._await(layer, operation)
        if layer.recorded_step != layer.step:
            self._finish_without_wait(layer, operation)
        layer.operation = None

    def _finish_without_wait(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Record a broadcast that had no wait, or needed none."""
        self._journal.finished_without_wait(layer, operation)
        layer.recorded_step = layer.step

    def _require_placed(self, layer: SeriesLayer) -> None:
        """Check that the bytes of a layer that this rank owns are those from post-processing.

        Raises:
            StaleWindowError: they changed, in a way that torch does not count.
        """
        if layer.sample is not None and not torch.equal(layer.sample, layer.sampled):  # type: ignore[arg-type]
            raise StaleWindowError(
                f"{self.describe(layer)}: its bytes changed after post-processing, through .data, NumPy or in "
                f"inference mode (as merging an adapter does), and the other ranks may not have the change; make it "
                f"before post-processing"
            )

    def require_unwritten(self, layer_idx: int) -> None:
        """Check that a layer's forward has not written to its tensors.

        Raises:
            StaleWindowError: it has; the next broadcast would overwrite that, or has already sent it to the peers.
        """
        layer = self._layers[layer_idx]
        for tensor, _, version in layer.memory:
            if version is not None and tensor._version != version:  # noqa: SLF001
                self._refuse_changed(layer, tensor, moved=False)

    # ---- reads of a tensor without a call of its linear ----------------------------------------

    def lets_read(self, layer: SeriesLayer) -> bool:
        """Wait for a layer if the step has reached it; return whether its bytes are there.

        Only the forward's thread waits.
        """
        step = self._step
        if layer.waited_step != step and layer.position < self._next and get_ident() == self._thread:
            window = layer.window
            if layer.owned or (window is not None and window.occupant is layer and layer.step == step):
                self.wait(layer.layer_idx)
        return self.holds(layer)

    def holds(self, layer: SeriesLayer) -> bool:
        """Return whether a layer's bytes are there, and stay until a later reach."""
        if layer.owned:
            return True
        window = layer.window
        return layer.operation is None and window is not None and window.occupant is layer and not self._closed

    def describe(self, layer: SeriesLayer) -> str:
        """Return series, rank and layer, for errors."""
        return f"{self._where}, layer {layer.layer_idx}"

    def absence(self, layer: SeriesLayer) -> str:
        """Return why a layer's bytes are not there."""
        if self._closed:
            return "is gone: the series was closed"
        return (
            f"is stored on group rank {layer.source} and comes to this rank only in a step that has reached the layer; "
            f"read it in such a step, and change weights before post-processing"
        )

    # ---- steps -------------------------------------------------------------------------------

    def begin_step(self, batch: Batch) -> None:
        """Mark the beginning of a forward. A step that is still open is ended first."""
        self._require_running()
        if self._in_step:
            self._end(StepFlag.IMPLICIT_END)
        self._marked = True
        self._journal.begins()
        self._batch = batch

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and issue its remaining broadcasts.

        A forward that began but reached no layer is not counted, unless it was aborted. If a forward failed and its
        peers do not follow in time, perhaps because they are blocked in a collective that it left, its remaining
        broadcasts are issued when the next step begins.
        """
        self._require_running()
        if not self._in_step:
            if not (self._marked and aborted):
                self._marked = False
                self._journal.leaves()
                return
            self._open_step()
        if aborted and self._holds_host and not self._catch_up_without_blocking():
            self._marked = False
            self._journal.leaves()
            return
        self._end(StepFlag.ABORTED if aborted else StepFlag(0))

    def _enter(self, layer_idx: int, position: int) -> bool:
        """Begin a step at its first layer, or refuse a reach that is out of order.

        Returns:
            Whether the caller must issue the reach's broadcast.
        """
        self._require_running(layer_idx)
        if position != 0 or (self._marked and 0 < self._next < self._num_layers):
            self._refuse_reach(layer_idx, position)
        if self._in_step:
            self._end(StepFlag.IMPLICIT_END)
        self._open_step()
        return True

    def _open_step(self) -> None:
        self._step += 1
        self._thread = get_ident()
        self._in_step = True
        self._next = 0
        self._waits = 0
        self._journal.arrives(self._step, marked=self._marked)

    def _end(self, flags: StepFlag) -> None:
        if StepFlag.IMPLICIT_END not in flags:
            self._journal.ends()
        if self._next < self._num_layers:
            flags |= StepFlag.ABORTED
            self._catch_up()
        if StepFlag.ABORTED in flags:
            self.aborted_steps += 1
        self._write_step(flags)

    def _catch_up(self) -> None:
        """Issue the remaining broadcasts, so that all ranks stay in step and the next step finds its first layers."""
        for position in range(self._next, self._num_layers):
            self._issue(position)
        self._next = self._num_layers

    def _catch_up_without_blocking(self) -> bool:
        """Issue the remaining broadcasts until a timeout; return whether all are issued."""
        deadline = time.monotonic() + ABORT_PATIENCE_S
        for position in range(self._next, self._num_layers):
            while not self._may_issue(position):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
            self._issue(position)
            self._next = position + 1
        return True

    def _may_issue(self, reach_position: int) -> bool:
        """Return whether :meth:`_issue` could run without waiting for a broadcast."""
        layer = self._targets[reach_position]
        window = self._windows[self._roll] if self._rolling else layer.window
        users = (layer, window.occupant if window is not None else None)
        return all(user is None or user.operation is None or user.operation.done() for user in users)

    def replay(self) -> AbstractContextManager[None]:
        """Wrap the replay of a graph that was captured from a whole forward."""
        self._refuse_graph("replay")

    def announce_graph(self) -> None:
        """Announce that a graph of a whole forward is captured or replayed next."""
        self._refuse_graph("announce_graph")

    def join(self) -> None:
        """End the capture of a forward into a graph; do nothing outside a capture."""

    def _refuse_graph(self, call: str) -> NoReturn:
        raise OrderError(f"{self._where}: {call}() needs a series on a device: this one's waits block the host")

    def _write_step(self, flags: StepFlag) -> None:
        """Write the step's missing records, then the step's own, and become idle.

        Raises:
            OrderError: compiled code did not wait for all layers.
            StaleWindowError: the forward wrote to a layer that this rank owns, perhaps while it was being sent.
        """
        step = self._step
        unwaited = self._num_layers - self._waits if StepFlag.ABORTED not in flags else 0
        if unwaited > self.most_unwaited:
            if not (self.most_unwaited or self.compiled or self._reads_what_is_kept(step)):
                logger.warning(self.unwaited_warning, self._where, unwaited, self._num_layers)
            self.most_unwaited = unwaited
        for layer in self._layers.values():
            if layer.step == step and layer.recorded_step != step:
                self._finish_without_wait(layer, layer.operation)
        batch, waits = self._batch, self._waits
        self._in_step = self._marked = False
        self._next = 0
        self._batch = Batch()
        # Last, because a journal that checks may raise; a caller that goes on regardless begins a new step.
        kept_layers = 0 if self.keeper is None else sum(layer.kept for layer in self._layers.values())
        self._journal.stepped(
            step,
            batch.links,
            tokens=batch.tokens,
            requests=batch.requests,
            kept_layers=kept_layers,
            phase=int(batch.phase),
            waits=waits,
            flags=int(flags),
        )
        if unwaited and self.compiled:
            raise OrderError(_UNWAITED_IN_GRAPH % (self._where, step, unwaited, self._num_layers))
        if self.keeper is not None and StepFlag.ABORTED not in flags:
            for layer in self._owned:
                self._require_placed(layer)

    def _reads_what_is_kept(self, step: int) -> bool:
        """Return whether this rank holds every layer without a wait, and some layer is kept for its readers."""
        layers = self._layers.values()
        there = all(layer.owned or layer.kept or layer.waited_step == step for layer in layers)
        return there and any(layer.kept for layer in layers)

    def close(self) -> None:
        """End the series; record broadcasts under way as open.

        First waits, up to :data:`CLOSE_PATIENCE_S`, for this rank's sends of the last step. A source does not wait for
        them in its forward, so it may finish while its peers still wait for them.
        """
        if self._closed:
            return
        if not self._refusal:
            self._await_sends()
        self._closed = True
        try:
            if self._in_step and not self._refusal:
                flags = StepFlag.IMPLICIT_END
                if self._next < self._num_layers:
                    flags |= StepFlag.ABORTED
                    self.aborted_steps += 1
                self._write_step(flags)
        finally:
            for layer in self._layers.values():
                if layer.operation is not None and layer.recorded_step != layer.step:
                    self._journal.left_open(layer, layer.operation)
                    layer.recorded_step = layer.step
            self._next = NOT_RUNNING
            self._journal.closes()

    def _await_sends(self) -> None:
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        for layer in self._layers.values():
            while (
                layer.owned
                and layer.operation is not None
                and layer.step <= self._step
                and not layer.operation.done()
                and time.monotonic() < deadline
            ):
                time.sleep(_POLL_S)

    # ---- refusals ----------------------------------------------------------------------------

    def _wait_elsewhere(self, layer_idx: int) -> None:
        """Handle a wait for a layer that the step has not reached."""
        self._refuse_wait(layer_idx)

    def _require_running(self, layer_idx: int | None = None) -> None:
        if self._refusal:
            raise PeerLostError(self._refusal)
        if self._closed:
            layer = "" if layer_idx is None else f", layer {layer_idx}"
            raise OrderError(f"{self._where}{layer}: used after close")

    def _refuse_reach(self, layer_idx: int, position: int) -> NoReturn:
        expected = self._indexes[self._next % self._num_layers]
        if position == NOT_A_LAYER:
            problem = "not a layer of the series"
        elif self._in_step and position < self._next:
            problem = f"reached twice in step {self._step}; layer {expected} comes next"
        else:
            problem = f"reached out of order; layer {expected} comes next"
        raise OrderError(f"{self._where}, layer {layer_idx}: {problem}")

    def _refuse_wait(self, layer_idx: int) -> NoReturn:
        self._require_running(layer_idx)
        problem = "waited for, but not reached in this step" if self._in_step else "waited for outside a step"
        if layer_idx not in self._layers:
            problem = "not a layer of the series"
        raise OrderError(f"{self._where}, layer {layer_idx}: {problem}")

    def _refuse_stale(self, layer: SeriesLayer) -> NoReturn:
        window: Any = layer.window
        if window.occupant is layer:
            holder = f"is being filled again for step {layer.step}"
        elif window.occupant is None:
            holder = "holds nothing"
        else:
            holder = f"holds layer {window.occupant.layer_idx}"
        raise StaleWindowError(
            f"{self._where}, layer {layer.layer_idx}: its linear runs too late in step {self._step}: "
            f"window {window.index} {holder}"
        )

    def _refuse_changed(self, layer: SeriesLayer, tensor: Any, *, moved: bool) -> NoReturn:
        name = next(name for name, one in zip(layer.names, layer.tensors, strict=True) if one is tensor)
        if moved:
            problem = (
                f"{name} ({tensor.dtype}, {tensor.device}) was moved out of the series' memory, for example by "
                f"model.to(), model.double() or an assignment to .data"
            )
        else:
            problem = f"{name} was written to, for example by an optimizer, a merged adapter or the forward"
        raise StaleWindowError(
            f"{self.describe(layer)}: {problem}, so the ranks' weights would differ; "
            f"change weights before post-processing"
        )

    def _lose(self, layer: SeriesLayer, error: RuntimeError) -> NoReturn:
        """Give up, because no broadcast can be trusted after the group has lost a rank."""
        self.give_up(self._describe_loss(layer, error), error)

    def give_up(self, loss: str, error: Exception) -> NoReturn:
        """Refuse every call from now on, because a peer was lost.

        Raises:
            PeerLostError: always, with ``loss`` as its text.
        """
        self._refusal = loss
        self._next = NOT_RUNNING
        self._journal.leaves()
        raise PeerLostError(loss) from error


for _entry in (Circle.reach, Circle.wait, Circle.begin_step, Circle.end_step):
    run_outside(_entry, "swtrace: broadcasts and waits cannot be part of a graph")
