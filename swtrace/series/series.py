"""A shared-weight series on one rank, as its user sees it: register, post-process, then reach and wait.

This file is the life of a series up to its first step; :mod:`swtrace.series.circle` is what runs from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch.compiler import is_compiling

from swtrace.errors import OrderError, PeerLostError, RegistrationError, StaleWindowError
from swtrace.series import operations
from swtrace.series.agreement import TracingOutcome
from swtrace.series.circle import Circle
from swtrace.series.constants import SeriesConstants
from swtrace.series.device.device_circle import DeviceCircle
from swtrace.series.keeping import Keeper
from swtrace.series.loading import Landing, PendingLayer, return_freed
from swtrace.series.operations import TRACED, records_operations
from swtrace.series.payload import PayloadLayout, own_tensors, payload_tensors, unsuitable
from swtrace.series.post_processing import PostProcessing, RunningSeries, new_transport
from swtrace.series.proof import Proof, TryOut
from swtrace.series.recording import RecorderSource
from swtrace.series.tensor_table import unwatch, watch
from swtrace.series.waiting import WaitingLayer, in_a_series, leave_ended_series
from swtrace.settings import Settings
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import Phase

if TYPE_CHECKING:
    from torch import nn

    from swtrace.series.group import Group
    from swtrace.series.transport import Transport
    from swtrace.trace.recorder import Recorder

NOT_TRACED = "SWTRACE_TRACE=0"
"""Why a rank that was told so records nothing."""


_ROLLING = (
    "swtrace: rolling windows move weights at every reach, so a graph ends there; "
    "set SWTRACE_WINDOWS=static to compile a forward as one graph"
)
_STEPS = "swtrace: steps are marked outside of compiled code; call the compiled forward within series.step()"


@dataclass(frozen=True, slots=True)
class SeriesStatistics:
    """A series on one rank, in numbers."""

    steps: int
    aborted_steps: int
    most_unwaited: int
    """Of a step that did not die: how many layers nobody waited for, at most."""
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
    kept_layers: int
    """Received layers that have memory of their own besides, because something else holds their weights."""
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
        check: bool | None = None,
        transport: Transport | None = None,
        recorder: Recorder | RecorderSource | None = None,
        hook_forward: bool = True,
        auto_post_process: bool = False,
        try_out: TryOut | None = None,
        withdrawn: Callable[[str], None] | None = None,
        run_ranks: Sequence[int] | None = None,
        time_every: int | None = None,
        settings: Settings | None = None,
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
            check: compare, at every wait, what the window holds with what it should; by default ``SWTRACE_CHECK``.
            transport: what moves the bytes; by default a communicator of its own over the group's ranks.
            recorder: where to record: a recorder, a function that finds it once the run id is agreed
                (``recording.process_recorder``; not asked where ``SWTRACE_TRACE=0``), or None for an untraced series.
                Where it cannot make a ring this rank runs untraced, unless ``SWTRACE_STRICT=1``.
            hook_forward: wait by itself when a layer's ``forward`` or its quant method's ``apply`` is called.
            auto_post_process: post-process when the model's loader has asked for it on the last layer.
            try_out: multiplies a fixed input with a layer's weight. With it, post-processing proves that the
                weight is read from its window.
            withdrawn: called with the reason, on all ranks, when the layers turn out to be none that can be
                shared. They are whole then, on every rank, and the series is over. Without it that is an error.
            run_ranks: how the run numbers the group's ranks, in group order, where that is not how torch does: in
                a run of several torch worlds. Records and errors name ranks by these numbers.
            time_every: how many steps there are for each timed one; the others are counted. 0 times the first 64,
                then one in 32. The same on all ranks. By default ``SWTRACE_TIME_EVERY``.
            settings: what is not an argument here; by default the environment's, read now.

        Raises:
            RegistrationError: such a series cannot be.
            SettingsError: no such window policy.
        """
        self.name = name
        self._settings = settings = settings or Settings.from_environment()
        self._constants = constants = SeriesConstants(
            name=name,
            group=group,
            ranks=tuple(group.ranks if run_ranks is None else run_ranks),
            start_layer=start_layer,
            num_layers=end_layer - start_layer,
            prefetch_step=prefetch_step,
            windows="static" if windows == "auto" else windows,
            tagged=settings.check if check is None else check,
            time_every=settings.time_every if time_every is None else time_every,
        )
        constants.check()
        self.where = constants.where
        """The series and the rank, for errors."""
        self._transport = transport
        # A recorder that is there already was made for this series; else whoever runs it decides.
        self._recorder_source = recorder if settings.trace or not callable(recorder) else None
        self._tracing = TracingOutcome(
            "" if self._recorder_source is not None else "made without a recorder" if settings.trace else NOT_TRACED,
            strict=settings.strict,
        )
        self._hooks: list[WaitingLayer] | None = [] if hook_forward else None
        self._auto_post_process = auto_post_process
        self._proof = Proof(try_out) if try_out is not None else None
        self._on_withdrawn = withdrawn
        self._withdrawn = False
        self._closed = False
        self.number = operations.number(self)
        """By which compiled code knows the series."""
        self.thread = torch.zeros(1, dtype=torch.uint8)
        """Orders reaches in compiled code with what they must stay behind; nobody reads it."""

        self._pending: dict[int, PendingLayer] = {}
        self._modules: dict[int, nn.Module] = {}
        self._asked: set[int] = set()
        self._landing = Landing()

        self._running_series: RunningSeries | None = None
        """From post-processing on."""
        self._circle: Circle | None = None
        """Its circle."""
        self._refusal: type[PeerLostError | OrderError] = OrderError
        self._refusal_text = f"{self.where}: used before post-processing"

    # ---- loading -----------------------------------------------------------------------------

    @property
    def info(self) -> SeriesInfo:
        """The series' constants; known from post-processing on."""
        if self._running_series is None:
            raise OrderError(f"{self.where}: not post-processed yet{self._missing_text()}")
        return self._running_series.info

    @property
    def post_processed(self) -> bool:
        """Whether the series is ready to be used."""
        return self._running_series is not None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def withdrawn(self) -> bool:
        """Whether the series is over before its first step, and every rank has every layer whole."""
        return self._withdrawn

    def described_by(self, group: Group, start_layer: int, end_layer: int, prefetch_step: int) -> bool:
        """Whether these arguments describe this series."""
        mine = tuple(self._constants.group.ranks), self._constants.layers, self._constants.prefetch_step
        return mine == (tuple(group.ranks), range(start_layer, end_layer), prefetch_step)

    def register(self, layer_idx: int, layer: nn.Module) -> None:
        """Take a linear into the series, while the model is built and before its weight is loaded.

        On ranks that are not its source the weight is freed at once and will not be loaded; everywhere its
        ``process_weights_after_loading`` is put off until :meth:`post_process`.

        Raises:
            RegistrationError: not a layer of this series, registered before, or unlike the others.
        """
        where, layers = f"{self.where}, layer {layer_idx}", self._constants.layers
        if self.post_processed:
            raise RegistrationError(f"{where}: registered after post-processing")
        if layer_idx not in layers:
            raise RegistrationError(f"{where}: not within [{layers.start}, {layers.stop})")
        if layer_idx in self._modules:
            raise RegistrationError(f"{where}: registered twice")
        if any(layer is other for other in self._modules.values()):
            raise RegistrationError(f"{where}: its module is registered as another layer already")
        if any(map(in_a_series, layer.modules())):
            raise RegistrationError(f"{where}: its module, or a part of it, is registered in another series")
        for part in layer.modules():
            leave_ended_series(part)
        if isinstance(layer, torch.jit.ScriptModule):
            raise RegistrationError(f"{where}: is a torch.jit module, whose code records no waits; use torch.compile")
        layout = self._layout_of(where, layer)
        self._pending[layer_idx] = PendingLayer(
            layer,
            layout,
            self._landing,
            owned=self._constants.owns(layer_idx),
            asked=lambda: self._processing_asked(layer_idx),
        )
        self._modules[layer_idx] = layer
        if self._hooks is not None:
            self._hooks.append(WaitingLayer(self, layer_idx, layer))

    def _layout_of(self, where: str, layer: nn.Module) -> PayloadLayout:
        """Return how a layer's tensors lie in its payload.

        Raises:
            RegistrationError: they are none that can be shared, or unlike those of the other layers.
        """
        for name, tensor in own_tensors(layer).items():
            problem = unsuitable(tensor)
            if problem:
                raise RegistrationError(f"{where}: {name} {problem}")
        tensors = payload_tensors(layer)
        for other_idx, other_layer in self._modules.items():
            theirs = {id(tensor) for tensor in payload_tensors(other_layer).values()}
            tied = [name for name, tensor in tensors.items() if id(tensor) in theirs]
            if tied:
                raise RegistrationError(f"{where}: {tied[0]} is tied to layer {other_idx}; give each layer its own")
        layout = PayloadLayout.of(tensors, tagged=self._constants.tagged)
        if not layout.places:
            raise RegistrationError(f"{where}: the module has no tensors")
        for other_idx, other in self._pending.items():
            if other.layout != layout:
                raise RegistrationError(
                    f"{where}: unequal layers: it has {layout}; layer {other_idx} has {other.layout}"
                )
            break
        return layout

    def withdraw(self) -> None:
        """Undo every registration, before the weights are loaded: every rank will load all of them itself.

        Raises:
            OrderError: too late: this rank has thrown away what was loaded into layers that it is not the source of.
        """
        if self.post_processed:
            raise OrderError(f"{self.where}: withdrawn after post-processing")
        for layer_idx, pending in self._pending.items():
            if pending.loaded():
                raise OrderError(f"{self.where}, layer {layer_idx}: withdrawn after its weights were loaded")
        for pending in self._pending.values():
            pending.give_back()
        self._end_unused("withdrawn")

    def _end_unused(self, reason: str) -> None:
        self._withdrawn = True
        self._pending.clear()
        self._refusal_text = f"{self.where}: {reason}"
        for hook in self._hooks or ():
            hook.release()
        if self._transport is not None:
            self._transport.close()

    def _processing_asked(self, layer_idx: int) -> None:
        self._asked.add(layer_idx)
        if (
            self._auto_post_process
            and not self._withdrawn
            and not self.post_processed
            and len(self._asked) == self._constants.num_layers
        ):
            self.post_process()

    def _missing_text(self) -> str:
        missing = ", ".join(map(str, self._constants.missing(self._modules)))
        return f" (never registered: layers {missing})" if missing else ""

    # ---- post-processing ---------------------------------------------------------------------

    def post_process(self) -> None:
        """Agree with all ranks, bring every layer where it belongs, open the ring. Collective; once per series.

        Raises:
            DisagreementError: the ranks describe different series.
            RegistrationError: layers are missing, or cannot be shared.
            RingCreateError: some rank cannot be traced, and ``SWTRACE_STRICT=1``.
            PeerLostError: a rank died.
        """
        if self._running_series is not None:
            raise OrderError(f"{self.where}: post-processed twice")
        if self._closed or self._withdrawn:
            raise OrderError(f"{self.where}: post-processed after it was {'closed' if self._closed else 'withdrawn'}")
        try:
            if self._transport is None:
                self._transport = new_transport(self._constants, self._modules, timeout_s=self._settings.timeout_s)
            work = PostProcessing(
                self._constants,
                self._modules,
                self._pending,
                self._transport,
                self._recorder_source,
                self._tracing,
                self._proof,
                self._settings,
            )
            self._landing.release()
            outcome = work.run()
        except PeerLostError as lost:
            self._refusal, self._refusal_text = PeerLostError, str(lost)
            raise
        self._pending.clear()
        if isinstance(outcome, RunningSeries):
            self._running_series, self._circle = outcome, outcome.circle
            self._watch(outcome)
        elif self._on_withdrawn is None:
            raise RegistrationError(f"{self.where}: cannot be shared: {outcome}")
        else:
            self._end_unused(outcome)
            self._on_withdrawn(outcome)
        del work
        return_freed()

    def _watch(self, running: RunningSeries) -> None:
        """From now on, notice who reads or changes the layers' tensors, and how."""
        for layer in running.layers:
            layer.remember_memory()
        if self._hooks is None:
            return
        shown = not isinstance(running.circle, DeviceCircle)  # in a captured graph nobody waits twice
        for hook in self._hooks:
            hook.look_at_forward(shown=shown)
        if shown:
            for layer in running.layers:
                watch(layer, running.circle)
            running.circle.keeper = Keeper(self.where, running.layers, running.windows)

    # ---- forward -----------------------------------------------------------------------------

    def reach(self, layer_idx: int) -> None:
        """Tell that the forward has arrived at a layer: start the broadcast of the layer ``k`` ahead.

        Reaching the first layer begins a step, unless :meth:`begin_step` did.

        Raises:
            OrderError: not the layer that comes next.
            PeerLostError: a broadcast failed.
        """
        if is_compiling():
            self._trace_reach(layer_idx)
            return
        if records_operations():
            raise OrderError(f"{self.where}, layer {layer_idx}: {TRACED}")
        circle = self._circle
        if circle is None:
            self._refuse()
        circle.reach(layer_idx)

    def reach_from_graph(self, layer_idx: int) -> None:
        """Reach in compiled code: the step must then wait for every layer, unless a framework sees to the waits."""
        circle = self._circle
        if circle is None or circle.keeper is None:
            self.reach(layer_idx)
            return
        circle.compiled = circle.keeper.paused = True
        try:
            self.reach(layer_idx)
        finally:
            circle.keeper.paused = False

    def _trace_reach(self, layer_idx: int) -> None:
        """Put a reach into the graph that is being traced, as an operator."""
        operations.reach(self.thread, self.number, layer_idx)
        if self._constants.windows == "rolling":
            # The reach moves weights, and a graph holds on to those that it was called with.
            torch._dynamo.graph_break(msg=_ROLLING)  # noqa: SLF001 (the documented name)

    def wait(self, layer_idx: int) -> None:
        """Block until a layer's weight may be read. Again in the same step, it returns at once.

        Raises:
            OrderError: the forward has not reached the layer in this step.
            StaleWindowError: the layer's window has gone to another layer since, or is being filled anew.
            PeerLostError: its broadcast failed.
        """
        circle = self._circle
        if circle is None:
            self._refuse()
        circle.wait(layer_idx)

    def require_unwritten(self, layer_idx: int) -> None:
        """Raise if a layer's forward has written to its tensors.

        Raises:
            StaleWindowError: it has.
        """
        self._running().require_unwritten(layer_idx)

    def begin_step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> None:
        """Mark the beginning of a forward. A step that was not ended is ended first."""
        if is_compiling():
            torch._dynamo.graph_break(msg=_STEPS)  # noqa: SLF001
        self._running().begin_step(phase=phase, tokens=tokens, requests=requests)

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and make good what it left out.

        A forward that was begun, reached no layer and was not aborted was none: it is not counted. One that
        died before its first layer must be marked as aborted, so that its ranks stay in step.
        """
        if is_compiling():
            torch._dynamo.graph_break(msg=_STEPS)  # noqa: SLF001
        self._running().end_step(aborted=aborted)

    @contextmanager
    def step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> Iterator[None]:
        """Mark a forward: its beginning, its end, and whether it died.

        Raises:
            PeerLostError: the forward died in a collective of its own, because a peer did.
        """
        self.begin_step(phase=phase, tokens=tokens, requests=requests)
        try:
            with self.peers_named():
                yield
        except BaseException as error:
            if self._running().running:
                try:
                    self.end_step(aborted=True)
                except (PeerLostError, StaleWindowError) as another:
                    error.add_note(f"After that, {another}")
            raise
        self.end_step()

    @contextmanager
    def peers_named(self) -> Iterator[None]:
        """Stand around collectives that are not the series' own, where a step does not: whoever dies there is named.

        Raises:
            PeerLostError: the collective failed and a peer has died. Any other error comes out as it is.
        """
        try:
            yield
        except RuntimeError as error:
            running = self._running_series
            if running is not None and running.circle.running:
                loss = running.describe_death(running.circle.arrived, error)
                if loss:
                    running.circle.give_up(loss, error)
            raise

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Stand around the replay of a graph that was captured from a whole forward: the replay is a step.

        The forward is captured as it is, and ends with :meth:`join`::

            with torch.cuda.graph(graph):
                forward()
                series.join()
            with series.step(), series.replay():
                graph.replay()

        Raises:
            OrderError: no graph was captured, or a step is under way.
        """
        with self._device_circle("replay").replay():
            yield

    def join(self) -> None:
        """End the capture of a forward into a graph; does nothing outside of one.

        Raises:
            OrderError: the graph holds a part of a forward only.
        """
        if isinstance(self._circle, DeviceCircle):
            self._circle.join()

    def graph_follows(self) -> None:
        """Tell that a graph of a whole forward is captured or replayed next, where nobody can tell its end.

        For frameworks that replay by themselves. Within a marked step the replay is taken to end with the step.
        """
        self._device_circle("graph_follows").graph_follows()

    def _device_circle(self, call: str) -> DeviceCircle:
        circle = self._running()
        if not isinstance(circle, DeviceCircle):
            raise OrderError(f"{self.where}: {call}: its broadcasts block the host, which no graph can do")
        return circle

    @property
    def most_unwaited(self) -> int:
        """Of a step that did not die: how many layers nobody waited for, at most; 0 before the first step."""
        return self._circle.most_unwaited if self._circle is not None else 0

    def _running(self) -> Circle:
        if self._circle is None:
            self._refuse()
        return self._circle

    def _refuse(self) -> NoReturn:
        text = self._refusal_text
        raise self._refusal(text + self._missing_text() if self._refusal is OrderError else text)

    # ---- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End the series on this rank, once its sends of the last step are taken (or their takers seem gone).

        What is still under way then, is recorded as open. A rank that ends without it may cut its peers' last
        broadcasts off.

        Raises:
            StaleWindowError: the ownership check found in the last step what it could not tell before.
        """
        self._closed = True
        try:
            if self._circle is not None:
                self._circle.close()
        finally:
            for module in self._modules.values():
                unwatch(module)
            if self._transport is not None:
                self._transport.close()

    def statistics(self) -> SeriesStatistics:
        """Return the series in numbers."""
        circle = self._running()
        layers, windows = (running.layers, running.windows) if (running := self._running_series) else ((), ())
        return SeriesStatistics(
            steps=circle.steps,
            aborted_steps=circle.aborted_steps,
            most_unwaited=circle.most_unwaited,
            operations=circle.operations,
            in_flight=sum(layer.operation is not None and not layer.operation.done() for layer in layers),
            owned_layers=sum(layer.owned for layer in layers),
            windows=len(windows),
            owned_bytes=sum(layer.buffer.nbytes for layer in layers if layer.buffer is not None),
            window_bytes=sum(window.buffer.nbytes for window in windows),
            kept_layers=sum(layer.kept for layer in layers),
            replicated_bytes=self.info.replicated_bytes,
        )
