"""A shared-weight series on one rank: registration, post-processing, reach and wait.

The invariant that everything rests on: **every step issues exactly one broadcast per layer, in the
order of the circle, on every rank**, whatever the forward did. A forward that dies midway is made good
before the next step begins, by issuing what it left out. So the ranks' operations always match, and
the first ``k`` windows always hold what the next step reads first.

The second one: a buffer goes into a new broadcast only after the last one that used it was waited for,
by the linear or, where none came, by the runtime itself (it is *reaped*).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from swtrace.errors import OrderError, PeerLostError, RegistrationError, SettingsError, StaleWindowError
from swtrace.series import plan
from swtrace.series.agreement import RunIdProposal, SeriesDescription, agree, require_equal
from swtrace.series.journal import Journal, RecordingJournal, SilentJournal
from swtrace.series.layer import SeriesLayer
from swtrace.series.loading import PendingLayer
from swtrace.series.payload import PayloadLayout, payload_tensors
from swtrace.series.placing import Placing
from swtrace.series.pool import Window, WindowPool
from swtrace.series.recording import RecorderSource, propose_run_id
from swtrace.series.waiting import WaitHooks
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import MAX_GROUP, MAX_POSITIONS, Phase, StepFlag

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.group import Group
    from swtrace.series.transport import Operation, Transport
    from swtrace.trace.recorder import Recorder

POLICIES = ("rolling", "static")
NOT_RUNNING = -1
"""In place of the next position: every reach and wait takes the slow path, which says why it is refused."""


@dataclass(frozen=True, slots=True)
class SeriesStatistics:
    """A series on one rank, in numbers."""

    steps: int
    aborted_steps: int
    operations: int
    """Broadcasts issued; ``steps * layers`` between steps."""
    in_flight: int
    """Broadcasts issued and not complete."""
    owned_layers: int
    windows: int
    owned_bytes: int
    """Bytes really held for the layers that this rank keeps."""
    window_bytes: int
    """Bytes really held by its windows."""
    replicated_bytes: int
    """What every rank would hold without the series."""


class Series:
    """Isomorphic linears of consecutive layers ``[start_layer, end_layer)`` that share windows."""

    def __init__(
        self,
        name: str,
        group: Group,
        start_layer: int,
        end_layer: int,
        *,
        prefetch_step: int = 1,
        windows: str = "auto",
        transport: Transport | None = None,
        recorder: Recorder | RecorderSource | None = None,
        hook_forward: bool = True,
        auto_post_process: bool = False,
    ) -> None:
        """Describe the series; nothing is allocated and nobody is talked to before :meth:`post_process`.

        Args:
            name: the same on all ranks; names it in records and errors.
            group: the ranks that share it, at least two.
            start_layer: absolute index of the first layer.
            end_layer: one past the last.
            prefetch_step: how many layers ahead a broadcast starts, from 0 to the number of layers - 2.
            windows: ``static`` (constant pointers, for compiled code), ``rolling`` (the fewest windows, eager
                only) or ``auto``, which is ``static``.
            transport: what moves the bytes; by default a communicator of its own over the group's ranks.
            recorder: where to record: a recorder, a function that finds it once the run id is agreed
                (``recording.process_recorder``), or None for an untraced series.
            hook_forward: wait by itself when a layer's ``forward`` or its quant method's ``apply`` is called.
            auto_post_process: post-process when the model's loader has asked for it on the last layer.

        Raises:
            RegistrationError: such a series cannot be.
            SettingsError: no such window policy.
        """
        self.name = name
        self._group = group
        self._ranks = tuple(group.ranks)
        self._where = f"series {name!r}, rank {self._ranks[group.rank_in_group]}"
        self._start_layer = start_layer
        self._num_layers = end_layer - start_layer
        self._prefetch_step = prefetch_step
        if windows not in ("auto", *POLICIES):
            raise SettingsError(f"{self._where}: window policy {windows!r} is none of auto, rolling, static")
        self._policy = "static" if windows == "auto" else windows
        self._check_arguments()
        self._given_transport = transport
        self._recorder_source = recorder
        self._hooks = WaitHooks(self.wait) if hook_forward else None
        self._auto_post_process = auto_post_process

        self._pending: dict[int, PendingLayer] = {}
        self._modules: dict[int, nn.Module] = {}
        self._asked: set[int] = set()
        self._info: SeriesInfo | None = None
        self._failure = ""
        self._closed = False

        self._journal: Journal = SilentJournal()
        self._layers: dict[int, SeriesLayer] = {}
        """By absolute index."""
        self._targets: tuple[SeriesLayer, ...] = ()
        """``[reach position]``: the layer whose broadcast starts there."""
        self._windows: tuple[Window, ...] = ()
        self._rolling = self._policy == "rolling"
        self._roll = 0
        """Rolling: the window of the next issue."""

        self._next = NOT_RUNNING
        """Position that the forward reaches next: those before it were reached in this step."""
        self._in_step = False
        self._marked = False
        """The step was begun by :meth:`begin_step`."""
        self._step = -1
        self._operations = 0
        self._aborted_steps = 0
        self._waits = 0
        self._begin_ns = 0
        self._arrival_ns = 0
        self._last_wait_ns = 0
        self._phase = Phase.OTHER
        self._tokens = 0
        self._requests = 0

    def _check_arguments(self) -> None:
        size = self._group.world_size
        if size < 2:  # noqa: PLR2004
            raise RegistrationError(f"{self._where}: a group of {size} rank has nothing to share")
        if size > MAX_GROUP or self._num_layers > MAX_POSITIONS:
            raise RegistrationError(f"{self._where}: {size} ranks and {self._num_layers} layers are too many")
        if self._start_layer < 0 or self._num_layers < 2:  # noqa: PLR2004
            raise RegistrationError(
                f"{self._where}: layers [{self._start_layer}, {self._start_layer + self._num_layers}) are no series: "
                f"it takes two at least"
            )
        if not 0 <= self._prefetch_step <= self._num_layers - 2:
            raise RegistrationError(
                f"{self._where}: prefetch step {self._prefetch_step} is not within 0 and {self._num_layers - 2} "
                f"(number of layers - 2); set SWTRACE_PREFETCH_STEP"
            )

    # ---- loading -----------------------------------------------------------------------------

    @property
    def info(self) -> SeriesInfo:
        """The series' constants; known from post-processing on."""
        if self._info is None:
            raise OrderError(f"{self._where}: not post-processed yet{self._missing_text()}")
        return self._info

    @property
    def post_processed(self) -> bool:
        """Whether the series is ready to be used."""
        return self._info is not None

    def described_by(self, group: Group, start_layer: int, end_layer: int, prefetch_step: int) -> bool:
        """Whether these arguments describe this series."""
        mine = (self._ranks, self._start_layer, self._start_layer + self._num_layers, self._prefetch_step)
        return mine == (tuple(group.ranks), start_layer, end_layer, prefetch_step)

    def register(self, layer_idx: int, layer: nn.Module) -> None:
        """Take a linear into the series, while the model is built and before its weight is loaded.

        On ranks that are not its source the weight is freed at once and will not be loaded; everywhere its
        ``process_weights_after_loading`` is put off until :meth:`post_process`.

        Raises:
            RegistrationError: not a layer of this series, registered before, or unlike the others.
        """
        where = f"{self._where}, layer {layer_idx}"
        if self._info is not None:
            raise RegistrationError(f"{where}: registered after post-processing")
        if not self._start_layer <= layer_idx < self._start_layer + self._num_layers:
            raise RegistrationError(
                f"{where}: not within [{self._start_layer}, {self._start_layer + self._num_layers})"
            )
        if layer_idx in self._modules:
            raise RegistrationError(f"{where}: registered twice")
        if any(layer is other for other in self._modules.values()):
            raise RegistrationError(f"{where}: its module is registered as another layer already")
        layout = PayloadLayout.of(payload_tensors(layer))
        if not layout.places:
            raise RegistrationError(f"{where}: the module has no tensors of its own")
        for other_idx, other in self._pending.items():
            if other.layout != layout:
                raise RegistrationError(
                    f"{where}: unequal layers: it has {layout}; layer {other_idx} has {other.layout}"
                )
            break
        self._pending[layer_idx] = PendingLayer(
            layer, layout, owned=self._owns(layer_idx), asked=lambda: self._processing_asked(layer_idx)
        )
        self._modules[layer_idx] = layer
        if self._hooks is not None:
            self._hooks.add(layer_idx, layer)

    def _owns(self, layer_idx: int) -> bool:
        return plan.source_rank(layer_idx, self._group.world_size) == self._group.rank_in_group

    def _processing_asked(self, layer_idx: int) -> None:
        self._asked.add(layer_idx)
        if self._auto_post_process and self._info is None and len(self._asked) == self._num_layers:
            self.post_process()

    def _missing(self) -> tuple[int, ...]:
        layers = range(self._start_layer, self._start_layer + self._num_layers)
        return tuple(layer_idx for layer_idx in layers if layer_idx not in self._modules)

    def _missing_text(self) -> str:
        missing = ", ".join(map(str, self._missing()))
        return f" (never registered: layers {missing})" if missing else ""

    # ---- post-processing ---------------------------------------------------------------------

    def post_process(self) -> None:
        """Agree with all ranks, bring every layer where it belongs, open the ring. Collective; once per series.

        Raises:
            DisagreementError: the ranks describe different series.
            RegistrationError: layers are missing, or their post-processing cannot be shared.
            PeerLostError: a rank died.
        """
        if self._info is not None:
            raise OrderError(f"{self._where}: post-processed twice")
        transport = self._transport()
        run_id = self._agree(transport)
        start, count, k = self._start_layer, self._num_layers, self._prefetch_step
        layers = [
            SeriesLayer(
                position,
                start + position,
                self._modules[start + position],
                plan.source_rank(start + position, self._group.world_size),
                owned=self._owns(start + position),
            )
            for position in range(count)
        ]
        owned = frozenset(layer.position for layer in layers if layer.owned)
        pool = WindowPool(self._policy, count, k, owned)
        pending = [self._pending[layer.layer_idx] for layer in layers]

        def broadcast(layer: SeriesLayer, buffer: Tensor) -> None:
            try:
                transport.broadcast(buffer, layer.source)
            except RuntimeError as error:
                self._lose(layer, error)

        try:
            placement = Placing(self._where, layers, pending, pool, broadcast).run(k)
        finally:
            for loading in pending:
                loading.finish()
        require_equal(
            self._where,
            self._ranks,
            "tensors after post-processing",
            self._gather(transport, str(placement.layout)),
        )
        self._windows = placement.windows
        self._layers = {layer.layer_idx: layer for layer in layers}
        self._targets = tuple(layers[plan.prefetch_target(position, k, count)] for position in range(count))
        self._roll = k % len(self._windows) if self._rolling else 0
        self._info = SeriesInfo(
            name=self.name,
            start_layer=start,
            num_layers=count,
            prefetch_step=k,
            windows=self._policy,
            window_count=len(self._windows),
            group_ranks=self._ranks,
            rank_in_group=self._group.rank_in_group,
            transport=transport.name,
            rendezvous=transport.rendezvous,
            clock=transport.clock.name.lower(),
            layer_bytes=placement.layout.nbytes,
            owned_layers=len(owned),
        )
        self._now = transport.now
        self._issue_on_transport = transport.issue
        self._start_recording(run_id, transport)
        self._pending.clear()
        self._next = 0

    def _transport(self) -> Transport:
        if self._given_transport is None:
            from swtrace.series.torch_transport import TorchTransport

            self._given_transport = TorchTransport(
                self._group, description=f"swtrace:{self.name}", observe=self._recorder_source is not None
            )
        return self._given_transport

    def _agree(self, transport: Transport) -> str:
        mine = SeriesDescription(
            name=self.name,
            start_layer=self._start_layer,
            num_layers=self._num_layers,
            prefetch_step=self._prefetch_step,
            window_policy=self._policy,
            transport=transport.name,
            group_ranks=self._ranks,
            missing_layers=self._missing(),
            tensors=str(next(iter(self._pending.values())).layout) if self._pending else "none",
        )
        source = self._recorder_source
        if source is None or callable(source):
            proposal = propose_run_id()
        else:
            proposal = RunIdProposal(source.identity.run_id, fixed=True)
        try:
            return agree(self._where, transport, mine, proposal)
        except RuntimeError as error:
            self._lose(None, error)

    def _gather(self, transport: Transport, item: object) -> list[object]:
        try:
            return transport.gather(item)
        except RuntimeError as error:
            self._lose(None, error)

    def _start_recording(self, run_id: str, transport: Transport) -> None:
        source = self._recorder_source
        if source is None:
            return
        recorder = source(run_id, self._ranks[self._group.rank_in_group]) if callable(source) else source
        self._recorder_source = recorder
        self._journal = RecordingJournal(recorder, recorder.add_series(self.info), transport.clock)

    # ---- forward -----------------------------------------------------------------------------

    def reach(self, layer_idx: int) -> None:
        """Tell that the forward has arrived at a layer: start the broadcast of the layer ``k`` ahead.

        Reaching the first layer begins a step.

        Raises:
            OrderError: not the layer that comes next.
            PeerLostError: a broadcast failed.
        """
        position = layer_idx - self._start_layer
        if position != self._next or position == 0:
            self._enter(position)
        self._next = position + 1
        self._issue(position)

    def wait(self, layer_idx: int) -> None:
        """Block until a layer's weight may be read. Again in the same step, it returns at once.

        Raises:
            OrderError: the forward has not reached the layer in this step.
            StaleWindowError: the layer's window has gone to another layer since, or is being filled anew.
            PeerLostError: its broadcast failed.
        """
        layer = self._layers.get(layer_idx)
        if layer is None or layer.position >= self._next:
            self._refuse_wait(layer_idx)
        step = self._step
        if not layer.owned and (layer.step != step or layer.window.occupant is not layer):  # type: ignore[union-attr]
            self._refuse_stale(layer)
        if layer.waited_step == step:
            return
        begin_ns = self._now()
        if layer.owned:
            # Nobody overwrites the source's copy: it reads it at once, while its send may still be under way.
            layer.wait_ns = self._last_wait_ns = begin_ns
        else:
            operation = layer.operation
            if operation is not None:
                try:
                    operation.wait()
                except RuntimeError as error:
                    self._lose(layer, error)
                layer.operation = None
            self._last_wait_ns = end_ns = self._now()
            self._journal.waited(layer, operation, begin_ns, end_ns)
            layer.recorded_step = step
        layer.waited_step = step
        self._waits += 1

    def _issue(self, reach_position: int) -> None:
        """Start the broadcast that belongs to a reach."""
        layer = self._targets[reach_position]
        if layer.owned:
            if self._rolling:
                self._free(self._take_window())
            buffer = layer.buffer
        else:
            window = layer.window
            if self._rolling:
                rolled = self._take_window()
                if rolled is not window:
                    layer.window = window = rolled
                    for tensor, view in zip(layer.tensors, rolled.views, strict=True):
                        tensor.data = view
            occupant = window.occupant  # type: ignore[union-attr]
            if occupant is not None and occupant.operation is not None:
                self._reap(occupant)
            window.occupant = layer  # type: ignore[union-attr]
            buffer = window.buffer  # type: ignore[union-attr]
        if layer.operation is not None:
            self._reap(layer)
        if layer.recorded_step != layer.step:
            self._settle(layer, None)
        step = self._step
        layer.prefilled = False
        layer.issued_step = step
        layer.step = step if layer.position >= reach_position else step + 1
        layer.reach_position = reach_position
        layer.operation_number = self._operations
        layer.issued_ns = self._now()
        on_ready = self._journal.issued(layer)
        try:
            layer.operation = self._issue_on_transport(buffer, layer.source, on_ready)  # type: ignore[arg-type]
        except RuntimeError as error:
            self._lose(layer, error)
        self._operations += 1

    def _take_window(self) -> Window:
        window = self._windows[self._roll]
        self._roll = (self._roll + 1) % len(self._windows)
        return window

    def _free(self, window: Window) -> None:
        """Leave a rolled-over window empty: its turn fell to a layer that this rank keeps."""
        occupant = window.occupant
        if occupant is None:
            return
        if occupant.operation is not None:
            self._reap(occupant)
        window.occupant = None
        self._journal.freed(window)

    def _reap(self, layer: SeriesLayer) -> None:
        """Wait for a broadcast that no linear waited for: a source's send, or one of a forward that died."""
        operation = layer.operation
        if operation is None:
            return
        try:
            operation.wait()
        except RuntimeError as error:
            self._lose(layer, error)
        if layer.recorded_step != layer.step:
            self._settle(layer, operation)
        layer.operation = None

    def _settle(self, layer: SeriesLayer, operation: Operation | None) -> None:
        """Write the record of a broadcast that had no wait, or needed none."""
        self._journal.settled(layer, operation)
        layer.recorded_step = layer.step

    # ---- steps -------------------------------------------------------------------------------

    def begin_step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> None:
        """Mark the beginning of a forward. A step that was not ended is ended first."""
        self._require_running()
        if self._in_step:
            self._end(self._last_wait_ns, StepFlag.IMPLICIT_END)
        self._marked = True
        self._begin_ns = self._now()
        self._phase, self._tokens, self._requests = phase, tokens, requests

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and make good what it left out.

        A forward that was begun, reached no layer and was not aborted was none: it is not counted.
        """
        self._require_running()
        if not self._in_step:
            if not (self._marked and aborted):
                self._marked = False
                return
            self._open_step()
        self._end(self._now(), StepFlag.ABORTED if aborted else StepFlag(0))

    @contextmanager
    def step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> Iterator[None]:
        """Mark a forward: its beginning, its end, and whether it died."""
        self.begin_step(phase=phase, tokens=tokens, requests=requests)
        try:
            yield
        except BaseException as error:
            if self._next != NOT_RUNNING:
                try:
                    self.end_step(aborted=True)
                except PeerLostError as lost:
                    error.add_note(f"After that, {lost}")
            raise
        self.end_step()

    def _enter(self, position: int) -> None:
        """Begin a step at its first layer, or refuse a reach that is out of order."""
        self._require_running()
        if position != 0 or (self._marked and 0 < self._next < self._num_layers):
            self._refuse_reach(position)
        if self._in_step:
            self._end(self._last_wait_ns, StepFlag.IMPLICIT_END)
        self._open_step()

    def _open_step(self) -> None:
        self._step += 1
        self._in_step = True
        self._next = 0
        self._waits = 0
        self._arrival_ns = self._last_wait_ns = self._now()
        if not self._marked:
            self._begin_ns = self._arrival_ns

    def _end(self, end_ns: int, flags: StepFlag) -> None:
        if self._next < self._num_layers:
            flags |= StepFlag.ABORTED
            self._catch_up()
        if StepFlag.ABORTED in flags:
            self._aborted_steps += 1
        self._write_step(end_ns, flags)

    def _catch_up(self) -> None:
        """Issue what is left of the circle, so that all ranks stay in step and the next one finds its first layers."""
        for position in range(self._next, self._num_layers):
            self._issue(position)
        self._next = self._num_layers

    def _write_step(self, end_ns: int, flags: StepFlag) -> None:
        """Write what the step still owes, then the step, and be idle."""
        step = self._step
        for layer in self._layers.values():
            if layer.step == step and layer.recorded_step != step:
                self._settle(layer, layer.operation)
        self._journal.stepped(
            self._begin_ns,
            self._arrival_ns,
            end_ns,
            step,
            self._tokens,
            self._requests,
            self._phase,
            self._waits,
            flags,
        )
        self._in_step = self._marked = False
        self._next = 0
        self._phase, self._tokens, self._requests = Phase.OTHER, 0, 0

    # ---- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End the series on this rank. Waits for nothing: what is under way is recorded as open."""
        if self._closed:
            return
        self._closed = True
        if self._info is not None and not self._failure and self._in_step:
            flags = StepFlag.IMPLICIT_END
            if self._next < self._num_layers:
                flags |= StepFlag.ABORTED
                self._aborted_steps += 1
            self._write_step(self._last_wait_ns, flags)
        for layer in self._layers.values():
            if layer.operation is not None and layer.recorded_step != layer.step:
                self._journal.left_open(layer, layer.operation)
                layer.recorded_step = layer.step
        self._next = NOT_RUNNING
        if self._hooks is not None:
            self._hooks.remove()
        if self._given_transport is not None:
            self._given_transport.close()

    def statistics(self) -> SeriesStatistics:
        """Return the series in numbers."""
        layers = self._layers.values()
        return SeriesStatistics(
            steps=self._step + 1 - self._in_step,
            aborted_steps=self._aborted_steps,
            operations=self._operations,
            in_flight=sum(layer.operation is not None and not layer.operation.done() for layer in layers),
            owned_layers=sum(layer.owned for layer in layers),
            windows=len(self._windows),
            owned_bytes=sum(layer.buffer.nbytes for layer in layers if layer.buffer is not None),
            window_bytes=sum(window.buffer.nbytes for window in self._windows),
            replicated_bytes=self.info.replicated_bytes,
        )

    # ---- refusals ----------------------------------------------------------------------------

    def _require_running(self) -> None:
        if self._failure:
            raise PeerLostError(self._failure)
        if self._closed:
            raise OrderError(f"{self._where}: used after close")
        if self._info is None:
            raise OrderError(f"{self._where}: used before post-processing{self._missing_text()}")

    def _refuse_reach(self, position: int) -> NoReturn:
        layer_idx = self._start_layer + position
        expected = self._start_layer + self._next % self._num_layers
        if not 0 <= position < self._num_layers:
            problem = f"not within [{self._start_layer}, {self._start_layer + self._num_layers})"
        elif self._in_step and position < self._next:
            problem = f"reached twice in step {self._step}; layer {expected} comes next"
        else:
            problem = f"reached where layer {expected} comes next"
        raise OrderError(f"{self._where}, layer {layer_idx}: {problem}")

    def _refuse_wait(self, layer_idx: int) -> NoReturn:
        self._require_running()
        problem = "waited for, but not reached in this step" if self._in_step else "waited for outside a step"
        if layer_idx not in self._layers:
            problem = "not a layer of the series"
        raise OrderError(f"{self._where}, layer {layer_idx}: {problem}")

    def _refuse_stale(self, layer: SeriesLayer) -> NoReturn:
        window: Any = layer.window
        if window.occupant is layer:
            holder = f"is being filled anew for step {layer.step}"
        elif window.occupant is None:
            holder = "holds nothing"
        else:
            holder = f"holds layer {window.occupant.layer_idx}"
        raise StaleWindowError(
            f"{self._where}, layer {layer.layer_idx}: its linear runs too late in step {self._step}: "
            f"window {window.index} {holder}"
        )

    def _lose(self, layer: SeriesLayer | None, error: RuntimeError) -> NoReturn:
        """Give up: without one rank of the group no broadcast can be trusted any more."""
        from swtrace.series.loss import describe_loss

        self._failure = describe_loss(
            self._where, self._ranks, layer, error, None if callable(self._recorder_source) else self._recorder_source
        )
        self._next = NOT_RUNNING
        raise PeerLostError(self._failure) from error
