"""A shared-weight series on one rank, as its user sees it: register, post-process, then reach and wait.

This module covers a series up to its first step; :mod:`swtrace.series.circle` runs the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.compiler import is_compiling

from swtrace.errors import OrderError, PeerLostError, RegistrationError, StaleWindowError
from swtrace.series import operations
from swtrace.series.agreement import TracingOutcome, never_registered
from swtrace.series.circle import Batch, Circle
from swtrace.series.constants import SeriesConstants
from swtrace.series.group import RankGroup
from swtrace.series.keeping import Keeper
from swtrace.series.loading import Landing, PendingLayer, return_freed
from swtrace.series.operations import TRACED, records_operations
from swtrace.series.payload import PayloadLayout, own_tensors, payload_tensors, unsuitable
from swtrace.series.peer_loss import BEFORE_STEPS, Peers
from swtrace.series.planned import read_plan
from swtrace.series.post_processing import PostProcessing, RunningSeries, new_transport, pulls, run_id_proposal
from swtrace.series.proof import Proof, TryOut
from swtrace.series.recording import RecorderSource, in_collective
from swtrace.series.tensor_table import unwatch, watch
from swtrace.series.unshared import ObservedLayer, loaded_bytes
from swtrace.series.waiting import WaitingLayer, in_a_series, leave_ended_series
from swtrace.settings import Settings
from swtrace.share import extent
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import Collective, Phase

if TYPE_CHECKING:
    from torch import nn

    from swtrace.series.group import Group
    from swtrace.series.transport import Transport
    from swtrace.trace.recorder import Recorder
    from swtrace.trace.request_link import RequestLink

NOT_TRACED = "SWTRACE_TRACE=0"
"""Why a rank with this setting records nothing."""

_ROLLING = (
    "swtrace: rolling windows move weights at every reach, which breaks the graph; "
    "set SWTRACE_WINDOWS=static to compile the forward as one graph"
)
_STEPS = "swtrace: a step cannot begin or end inside a graph; call the compiled forward within series.step()"


@dataclass(frozen=True, slots=True)
class SeriesStatistics:
    """Counters and sizes of a series on one rank."""

    steps: int
    aborted_steps: int
    most_unwaited: int
    """The most layers that a step left without a wait; aborted steps do not count."""
    operations: int
    """Broadcasts issued; ``steps * layers`` between steps."""
    in_flight: int
    """Broadcasts issued and not yet complete."""
    owned_layers: int
    windows: int
    owned_bytes: int
    """Bytes allocated for the layers that this rank owns."""
    window_bytes: int
    """Bytes allocated for its windows."""
    kept_layers: int
    """Received layers that also have memory of their own, because something else holds their weights."""
    replicated_bytes: int
    """Bytes that every rank would hold without the series."""


class Series:
    """Isomorphic linears of the layers ``[start_layer, end_layer)``, or of some of them, that share windows."""

    def __init__(
        self,
        name: str,
        group: Group,
        start_layer: int,
        end_layer: int,
        *,
        layers: Sequence[int] | None = None,
        prefetch_step: int = 1,
        windows: str = "auto",
        check: bool | None = None,
        transport: Transport[Any] | None = None,
        recorder: Recorder | RecorderSource | None = None,
        hook_forward: bool = True,
        auto_post_process: bool = False,
        try_out: TryOut | None = None,
        withdrawn: Callable[[str], None] | None = None,
        run_ranks: Sequence[int] | None = None,
        time_every: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Describe the series. Before :meth:`post_process`, nothing is allocated, and no rank waits for another.

        Args:
            name: identifies the series in records and errors; the same on all ranks.
            group: the ranks that share it, at least two; if the series is only observed, one is enough.
            start_layer: absolute index of the first layer.
            end_layer: one past the last.
            layers: absolute indexes of those to share, in ascending order; by default all. The others are *resident*:
                registering or reaching one does nothing, and each rank keeps its own.
            prefetch_step: how many shared layers ahead a broadcast starts, from 0 to their number - 2.
            windows: ``static`` (constant pointers, for compiled code), ``rolling`` (``prefetch_step`` + 1
                windows, eager only) or ``auto``, which is ``static``.
            check: check in every step that each window holds its layer's weight; by default ``SWTRACE_CHECK``.
            transport: moves the bytes; by default a new communicator over the group's ranks.
            recorder: where to record. A recorder, or None for an untraced series, or a function that returns a
                recorder, such as ``recording.process_recorder``. The series calls the function once the ranks have
                agreed on the run id, and not if ``SWTRACE_TRACE=0``. If the function cannot make a ring, this rank
                runs untraced, unless ``SWTRACE_STRICT=1``.
            hook_forward: wait automatically when a layer's ``forward`` or its quant method's ``apply`` is called.
            auto_post_process: post-process the series once the model's loader has asked every layer to post-process.
            try_out: multiplies a fixed input by a layer's weight. If given, post-processing uses it to prove that
                the multiplication reads the weight from its window.
            withdrawn: called with the reason, on all ranks, if the layers turn out not to be shareable. By then
                every rank has every layer whole, and the series has ended. If None, post-processing raises an error.
            run_ranks: the rank numbers that records and errors use, in group order. Needed only in a run of several
                torch worlds, where they differ from torch's.
            time_every: time one in this many steps and only count the others. 0 times the first 64 steps, then
                one in 32 on average. The same on all ranks. By default ``SWTRACE_TIME_EVERY``.
            settings: all other settings; by default, read from the environment now. With ``share`` none, the series is
                only observed (:mod:`swtrace.series.unshared`).

        Raises:
            RegistrationError: the group, the layers or the prefetch step cannot form a series.
            SettingsError: the window policy is unknown, or the plan cannot be used and ``SWTRACE_STRICT=1``.
        """
        self.name = name
        self._settings = settings = settings or Settings.from_environment()
        self._plan = read_plan(settings)
        ranks = tuple(group.ranks if run_ranks is None else run_ranks)
        observed = settings.share.observes
        if observed and pulls(group, settings):  # ranks that run steps of their own cannot be compared
            ranks = ranks[group.rank_in_group :][:1]
            group = RankGroup(ranks, 0)
        everything = layers is None or (observed and not layers)
        self._constants = constants = SeriesConstants(
            name=name,
            group=group,
            ranks=ranks,
            start_layer=start_layer,
            stack_layers=end_layer - start_layer,
            layers=tuple(map(int, range(start_layer, end_layer) if everything else layers or ())),
            prefetch_step=0 if observed else prefetch_step,
            windows="static" if observed or windows == "auto" else windows,
            tagged=not observed and (settings.check if check is None else check),
            time_every=settings.time_every if time_every is None else time_every,
            observed=observed,
        )
        constants.check()
        self._resident = frozenset(constants.stack).difference(constants.layers)
        self.where = constants.where
        """The series and the rank, for errors."""
        self.peers = Peers(self.where, group, ranks)
        self._transport = transport
        self._loads_alone = transport is None and not observed and pulls(group, settings)
        """Whether each rank may have a checkpoint of its own."""
        # A recorder that exists already was made for this series; otherwise the settings decide.
        self._recorder_source = recorder if settings.trace or not callable(recorder) else None
        self._tracing = TracingOutcome(
            "" if self._recorder_source is not None else "made without a recorder" if settings.trace else NOT_TRACED,
            strict=settings.strict,
        )
        self._hooks: list[WaitingLayer] | None = [] if hook_forward else None
        self._observed_layers: list[ObservedLayer] = []
        self._observed_bytes: dict[int, int] = {}
        self._auto_post_process = auto_post_process
        self._proof = Proof(try_out) if try_out is not None else None
        self._on_withdrawn = withdrawn
        self._withdrawn = False
        self._closed = False
        self.number = operations.number(self)
        """Identifies the series in compiled code."""
        self.order_token = torch.zeros(1, dtype=torch.uint8)
        """Orders reaches in compiled code behind the work that must come first; its value is never read."""

        self._pending: dict[int, PendingLayer] = {}
        self._modules: dict[int, nn.Module] = {}
        self._processing_requested: set[int] = set()
        self._landing = Landing()

        self._running_series: RunningSeries | None = None
        """Set by post-processing, as is its circle."""
        self._circle: Circle[Any] | None = None
        self._refusal: type[PeerLostError | OrderError] = OrderError
        self._refusal_text = f"{self.where}: used before post-processing"

    # ---- loading -----------------------------------------------------------------------------

    @property
    def info(self) -> SeriesInfo:
        """The series' constants; available after post-processing."""
        if self._running_series is None:
            raise OrderError(f"{self.where}: not post-processed yet{self._missing_text()}")
        return self._running_series.info

    @property
    def extent(self) -> str:
        """Which layers are shared, in words: ``layers 0-60``, or ``31 of 61 layers shared``."""
        return extent(self._constants.layers, self._constants.start_layer, self._constants.stack_layers)

    @property
    def post_processed(self) -> bool:
        """Whether the series is ready to be used."""
        return self._running_series is not None

    @property
    def observes(self) -> bool:
        """Whether nothing is shared (``SWTRACE_SHARE=none``)."""
        return self._constants.observed

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def withdrawn(self) -> bool:
        """Whether the series ended before its first step, so that every rank has every layer whole."""
        return self._withdrawn

    def described_by(self, group: Group, start_layer: int, end_layer: int, prefetch_step: int) -> bool:
        """Return whether these arguments describe this series."""
        mine = tuple(self._constants.group.ranks), self._constants.stack, self._constants.prefetch_step
        return mine == (tuple(group.ranks), range(start_layer, end_layer), prefetch_step)

    def register(self, layer_idx: int, layer: nn.Module) -> None:
        """Add a linear to the series, while the model is built and before its weight is loaded.

        On ranks that are not its source, the weight is freed at once and will not be loaded. On all ranks, its
        ``process_weights_after_loading`` is deferred to :meth:`post_process`. A resident layer is left alone.

        Raises:
            RegistrationError: not a layer of this series, already registered, or different from the others.
        """
        if layer_idx in self._resident:
            return
        where = self._require_new(layer_idx, layer)
        if self._constants.observed:
            self._observe(layer_idx, layer)
            return
        for part in layer.modules():
            leave_ended_series(part)
        if isinstance(layer, torch.jit.ScriptModule):
            raise RegistrationError(f"{where}: is a torch.jit module, which does not record waits; use torch.compile")
        layout = self._layout_of(where, layer)
        self._pending[layer_idx] = PendingLayer(
            layer,
            layout,
            self._landing,
            owned=self._constants.owns(layer_idx),
            on_request=lambda: self._request_processing(layer_idx),
            fingerprinted=self._loads_alone,
        )
        self._modules[layer_idx] = layer
        if self._hooks is not None:
            self._hooks.append(WaitingLayer(self, layer_idx, layer))

    def _require_new(self, layer_idx: int, layer: nn.Module) -> str:
        """Check that a layer can be registered now; return series, rank and layer, for errors."""
        where, stack = f"{self.where}, layer {layer_idx}", self._constants.stack
        if self.post_processed:
            raise RegistrationError(f"{where}: registered after post-processing")
        if layer_idx not in stack:
            raise RegistrationError(f"{where}: not within [{stack.start}, {stack.stop})")
        if layer_idx in self._modules:
            raise RegistrationError(f"{where}: registered twice")
        if any(layer is other for other in self._modules.values()):
            raise RegistrationError(f"{where}: its module is already registered as another layer")
        if any(map(in_a_series, layer.modules())):
            raise RegistrationError(f"{where}: its module or one of its submodules is registered in another series")
        return where

    def _observe(self, layer_idx: int, layer: nn.Module) -> None:
        self._modules[layer_idx] = layer
        self._observed_bytes[layer_idx] = loaded_bytes(layer)
        if self._hooks is not None:
            self._observed_layers.append(ObservedLayer(self, layer_idx, layer))

    def _layout_of(self, where: str, layer: nn.Module) -> PayloadLayout:
        """Return the layout of a layer's tensors in its payload.

        Raises:
            RegistrationError: they cannot be shared, or differ from those of the other layers.
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
                raise RegistrationError(
                    f"{where}: {tied[0]} is tied to layer {other_idx}; give each layer a tensor of its own"
                )
        layout = PayloadLayout.of(tensors, tagged=self._constants.tagged)
        if not layout.places:
            raise RegistrationError(f"{where}: the module has no tensors")
        for other_idx, other in self._pending.items():
            if other.layout != layout:
                raise RegistrationError(
                    f"{where}: its tensors differ from those of layer {other_idx}: it has {layout}; "
                    f"layer {other_idx} has {other.layout}"
                )
            break
        return layout

    def withdraw(self) -> None:
        """Undo every registration before the weights are loaded, so that every rank loads all of them.

        Raises:
            OrderError: weights were loaded already, and this rank discarded those of layers it is not the source of.
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
        for hook in (*(self._hooks or ()), *self._observed_layers):
            hook.release()
        if self._transport is not None:
            self._transport.close()

    def _request_processing(self, layer_idx: int) -> None:
        self._processing_requested.add(layer_idx)
        if (
            self._auto_post_process
            and not self._withdrawn
            and not self.post_processed
            and len(self._processing_requested) == self._constants.num_layers
        ):
            self.post_process()

    def _missing_text(self) -> str:
        missing = self._constants.missing(self._modules)
        return f" ({never_registered(missing)})" if missing else ""

    # ---- post-processing ---------------------------------------------------------------------

    def post_process(self) -> None:
        """Agree with all ranks, move every layer to its place and open the ring. Collective; once per series.

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
            with self.naming_dead_peers():
                proposal = run_id_proposal(self._recorder_source, self._settings)
                if self._transport is None:
                    self._transport = new_transport(
                        self._constants, self._modules, self.peers, proposal, self._settings
                    )
                work = PostProcessing(
                    self._constants,
                    self._modules,
                    self._pending,
                    self._transport,
                    self.peers,
                    self._recorder_source,
                    proposal,
                    self._tracing,
                    self._proof,
                    self._settings,
                    self._plan,
                    observed_bytes=max(
                        (known or loaded_bytes(self._modules[layer]) for layer, known in self._observed_bytes.items()),
                        default=0,
                    ),
                )
                self._landing.release()
                outcome = work.run()
        except BaseException as error:
            if isinstance(error, PeerLostError):
                self._refusal, self._refusal_text = PeerLostError, str(error)
            if self._transport is not None:
                self._transport.close()
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
        if self._running_series is not None and self._settings.probe is not None:
            from swtrace.series.probing.probe import probe_at_start

            with self.naming_dead_peers():
                probe_at_start(self._constants.group, self.info, self._settings)

    def _watch(self, running: RunningSeries) -> None:
        """Start to intercept reads and changes of the layers' tensors."""
        if self._constants.observed:
            return
        for layer in running.layers:
            layer.remember_memory()
        if self._hooks is None:
            return
        shown = not running.circle.captures_graphs
        for hook in self._hooks:
            hook.look_at_forward(shown=shown)
        if shown:
            for layer in running.layers:
                watch(layer, running.circle)
            running.circle.keeper = Keeper(self.where, running.layers, running.windows)

    # ---- forward -----------------------------------------------------------------------------

    def reach(self, layer_idx: int) -> None:
        """Start the broadcast of the layer ``k`` ahead, because the forward has arrived at ``layer_idx``.

        Reaching the first shared layer begins a step, unless :meth:`begin_step` did. Reaching a resident one does
        nothing.

        Raises:
            OrderError: the layer is not the next one.
            PeerLostError: a broadcast failed.
        """
        if layer_idx in self._resident:
            return
        if is_compiling():
            self._trace_reach(layer_idx)
            return
        if records_operations():
            raise OrderError(f"{self.where}, layer {layer_idx}: {TRACED}")
        circle = self._circle
        if circle is None:
            self._refuse_unless_observed()
            return
        circle.reach(layer_idx)

    def reach_from_graph(self, layer_idx: int) -> None:
        """Reach in compiled code. The step must then wait for every layer, unless a framework handles the waits."""
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
        """Add a reach operator to the graph that is being traced."""
        operations.reach(self.order_token, self.number, layer_idx)
        if self._constants.windows == "rolling":
            # The reach moves weights, but a graph keeps using those that it was called with.
            torch._dynamo.graph_break(msg=_ROLLING)  # noqa: SLF001 (the documented name)

    def wait(self, layer_idx: int) -> None:
        """Block until a layer's weight may be read. A second wait in the same step returns at once.

        Raises:
            OrderError: the forward has not reached the layer in this step.
            StaleWindowError: the layer's window was given to another layer, or is being filled again.
            PeerLostError: its broadcast failed.
        """
        circle = self._circle
        if circle is None:
            self._refuse_unless_observed()
            return
        circle.wait(layer_idx)

    def require_unwritten(self, layer_idx: int) -> None:
        """Raise if a layer's forward has written to its tensors.

        Raises:
            StaleWindowError: it has.
        """
        self._running().require_unwritten(layer_idx)

    def begin_step(
        self,
        *,
        phase: Phase = Phase.OTHER,
        tokens: int = 0,
        requests: int = 0,
        links: Sequence[RequestLink] = (),
    ) -> None:
        """Mark the beginning of a forward. A step that is still open is ended first.

        Args:
            phase: What kind of tokens it works on.
            tokens: Tokens in its batch.
            requests: Requests in its batch.
            links: Trace contexts of these requests, as far as they are traced; the step's span links to the first 32.
        """
        if is_compiling():
            torch._dynamo.graph_break(msg=_STEPS)  # noqa: SLF001
        self._running().begin_step(Batch(phase, tokens, requests, links))

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and issue its remaining broadcasts.

        A forward that began but reached no layer is not counted, unless it was aborted. One that fails before its
        first layer must be marked as aborted, so that the ranks stay in step.
        """
        if is_compiling():
            torch._dynamo.graph_break(msg=_STEPS)  # noqa: SLF001
        self._running().end_step(aborted=aborted)

    @contextmanager
    def step(
        self,
        *,
        phase: Phase = Phase.OTHER,
        tokens: int = 0,
        requests: int = 0,
        links: Sequence[RequestLink] = (),
    ) -> Iterator[None]:
        """Mark a forward: its beginning (see :meth:`begin_step`), its end, and whether it failed.

        Raises:
            PeerLostError: the forward failed in another collective because a peer died.
        """
        self.begin_step(phase=phase, tokens=tokens, requests=requests, links=links)
        try:
            with self._naming_dead_peers():
                yield
        except BaseException as error:
            if self._running().running:
                try:
                    self.end_step(aborted=True)
                except (PeerLostError, StaleWindowError) as another:
                    error.add_note(f"Ending the step then failed: {another}")
            raise
        self.end_step()

    @contextmanager
    def naming_dead_peers(self) -> Iterator[None]:
        """Wrap a collective that is not the series' own, so that an error names the rank that died.

        Meanwhile, readers see that this rank is in such a collective.

        It may also wrap collectives before post-processing, and after the series was closed.

        Raises:
            PeerLostError: the collective failed and a peer has died. Any other error passes unchanged.
        """
        with in_collective(Collective.OTHER), self._naming_dead_peers():
            yield

    @contextmanager
    def _naming_dead_peers(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError) as error:
            loss = "" if self._constants.observed else self.peers.describe_death(self.place, error)
            if loss and self._circle is not None and self._circle.running:
                self._circle.give_up(loss, error)
            if loss:
                raise PeerLostError(loss) from error
            raise

    @property
    def place(self) -> str:
        """How far the forward has come: the series, the rank, and the layer that it reached last."""
        arrived = None if self._circle is None else self._circle.arrived
        return f"{self.where}, {BEFORE_STEPS if arrived is None else f'layer {arrived}'}"

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Wrap the replay of a graph that was captured from a whole forward: the replay is one step.

        The forward is captured unchanged, and ends with :meth:`join`::

            with torch.cuda.graph(graph):
                forward()
                series.join()
            with series.step(), series.replay():
                graph.replay()

        Raises:
            OrderError: no graph was captured, or a step is under way.
        """
        with self._running().replay():
            yield

    def join(self) -> None:
        """End the capture of a forward into a graph; do nothing outside a capture.

        Raises:
            OrderError: the graph holds only part of a forward.
        """
        if self._circle is not None:
            self._circle.join()

    def announce_graph(self) -> None:
        """Announce that a graph of a whole forward is captured or replayed next, if its end cannot be marked.

        For frameworks that run replays on their own. In a marked step, the replay is assumed to end with the step.
        """
        self._running().announce_graph()

    @property
    def most_unwaited(self) -> int:
        """The most layers that a step left without a wait; aborted steps do not count. 0 before the first step."""
        return self._circle.most_unwaited if self._circle is not None else 0

    def _running(self) -> Circle[Any]:
        if self._circle is None:
            self._refuse()
        return self._circle

    def _refuse_unless_observed(self) -> None:
        """Refuse a call before post-processing. A model that is only observed may run as it likes."""
        if not self._constants.observed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        text = self._refusal_text
        raise self._refusal(text + self._missing_text() if self._refusal is OrderError else text)

    # ---- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End the series on this rank, once its sends of the last step are complete or a timeout has passed.

        Broadcasts still under way are recorded as open. A rank that exits without closing may cut off its peers'
        last broadcasts.

        Raises:
            StaleWindowError: the ownership check found an error whose result arrived only now.
        """
        self._closed = True
        try:
            if self._circle is not None:
                self._circle.close()
        finally:
            for layer in self._observed_layers:
                layer.release()
            for module in self._modules.values():
                unwatch(module)
            if self._transport is not None:
                self._transport.close()

    def statistics(self) -> SeriesStatistics:
        """Return the series' counters and sizes."""
        circle = self._running()
        layers, windows = (running.layers, running.windows) if (running := self._running_series) else ((), ())
        return SeriesStatistics(
            steps=circle.steps,
            aborted_steps=circle.aborted_steps,
            most_unwaited=circle.most_unwaited,
            operations=circle.operations if self.info.shared else 0,
            in_flight=sum(layer.operation is not None and not layer.operation.done() for layer in layers),
            owned_layers=sum(layer.owned for layer in layers),
            windows=len(windows),
            owned_bytes=sum(layer.buffer.nbytes for layer in layers if layer.buffer is not None)
            or self.info.owned_bytes * (not self.info.shared),
            window_bytes=sum(window.buffer.nbytes for window in windows),
            kept_layers=sum(layer.kept for layer in layers),
            replicated_bytes=self.info.replicated_bytes,
        )
