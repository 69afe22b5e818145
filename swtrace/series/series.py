"""A shared-weight series on one rank, as its user sees it: register, post-process, then reach and wait.

This file is the life of a series up to its first step; :mod:`swtrace.series.circle` is what runs from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from swtrace.errors import OrderError, PeerLostError, RegistrationError, SettingsError, StaleWindowError
from swtrace.series import plan
from swtrace.series.agreement import RunIdProposal, SeriesDescription, agree, require_equal
from swtrace.series.circle import Circle
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.device.circle import DeviceCircle
from swtrace.series.device.journal import STAMPS, DeviceJournal
from swtrace.series.device.transport import CollectiveMover, DeviceTransport
from swtrace.series.journal import Journal, RecordingJournal, SilentJournal
from swtrace.series.layer import SeriesLayer
from swtrace.series.loading import PendingLayer
from swtrace.series.loss import describe_loss
from swtrace.series.memory import return_freed
from swtrace.series.ownership import CheckingJournal, OwnershipCheck
from swtrace.series.payload import PayloadLayout, payload_tensors
from swtrace.series.placing import Placement, Placing, Unshareable
from swtrace.series.pool import Window, WindowPool
from swtrace.series.proof import Proof, TryOut
from swtrace.series.recording import RecorderSource, propose_run_id
from swtrace.series.waiting import WaitHooks
from swtrace.settings import Settings
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import MAX_GROUP, MAX_POSITIONS, Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series.group import Group
    from swtrace.series.transport import Transport
    from swtrace.trace.recorder import Recorder

POLICIES = ("rolling", "static")


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
                (``recording.process_recorder``), or None for an untraced series.
            hook_forward: wait by itself when a layer's ``forward`` or its quant method's ``apply`` is called.
            auto_post_process: post-process when the model's loader has asked for it on the last layer.
            try_out: multiplies a fixed input with a layer's weight. With it, post-processing proves that the
                weight is read from its window.
            withdrawn: called with the reason, on all ranks, when the layers turn out to be none that can be
                shared. They are whole then, on every rank, and the series is over. Without it that is an error.
            run_ranks: how the run numbers the group's ranks, in group order, where that is not how torch does: in
                a run of several torch worlds. Records and errors name ranks by these numbers.
            time_every: on a device, time only the steps whose number is a multiple of it: the same on all ranks.
                The others are counted. Host clocks time every step. By default ``SWTRACE_TIME_EVERY``.

        Raises:
            RegistrationError: such a series cannot be.
            SettingsError: no such window policy.
        """
        self.name = name
        self._group = group
        self._ranks = tuple(group.ranks if run_ranks is None else run_ranks)
        """In the run's numbers; torch's are the transport's business."""
        self._where = f"series {name!r}, rank {self._ranks[group.rank_in_group]}"
        self._start_layer = start_layer
        self._num_layers = end_layer - start_layer
        self._prefetch_step = prefetch_step
        if windows not in ("auto", *POLICIES):
            raise SettingsError(f"{self._where}: window policy {windows!r} is none of auto, rolling, static")
        self._policy = "static" if windows == "auto" else windows
        self._check_arguments()
        settings = Settings.from_environment()
        self._tagged = settings.check if check is None else check
        self._time_every = settings.time_every if time_every is None else time_every
        self._check: OwnershipCheck | None = None
        self._given_transport = transport
        self._recorder_source = recorder
        self._hooks = WaitHooks(self.wait) if hook_forward else None
        self._auto_post_process = auto_post_process
        self._proof = Proof(try_out) if try_out is not None else None
        self._on_withdrawn = withdrawn
        self._withdrawn = False

        self._pending: dict[int, PendingLayer] = {}
        self._modules: dict[int, nn.Module] = {}
        self._asked: set[int] = set()

        self._layers: dict[int, SeriesLayer] = {}
        """By absolute index; from post-processing on."""
        self._windows: tuple[Window, ...] = ()
        self._info: SeriesInfo | None = None
        self._circle: Circle | None = None
        self._graphs: DeviceCircle | None = None
        """The same, where it knows of graphs."""
        self._refusal: type[PeerLostError | OrderError] = OrderError
        self._refusal_text = f"{self._where}: used before post-processing"

    def _check_arguments(self) -> None:
        size = self._group.world_size
        if size < 2:  # noqa: PLR2004
            raise RegistrationError(f"{self._where}: a group of {size} rank has nothing to share")
        if len(self._ranks) != size:
            raise RegistrationError(f"{self._where}: {len(self._ranks)} run ranks for a group of {size}")
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

    @property
    def withdrawn(self) -> bool:
        """Whether the series is over before its first step, and every rank has every layer whole."""
        return self._withdrawn

    def described_by(self, group: Group, start_layer: int, end_layer: int, prefetch_step: int) -> bool:
        """Whether these arguments describe this series."""
        mine = (tuple(self._group.ranks), self._start_layer, self._start_layer + self._num_layers, self._prefetch_step)
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
        layout = PayloadLayout.of(payload_tensors(layer), tagged=self._tagged)
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

    def withdraw(self) -> None:
        """Undo every registration, before the weights are loaded: every rank will load all of them itself."""
        if self._info is not None:
            raise OrderError(f"{self._where}: withdrawn after post-processing")
        for pending in self._pending.values():
            pending.give_back()
        self._end_unused("withdrawn")

    def _end_unused(self, reason: str) -> None:
        self._withdrawn = True
        self._pending.clear()
        self._refusal_text = f"{self._where}: {reason}"
        self.close()

    def _owns(self, layer_idx: int) -> bool:
        return plan.source_rank(layer_idx, self._group.world_size) == self._group.rank_in_group

    def _processing_asked(self, layer_idx: int) -> None:
        self._asked.add(layer_idx)
        if (
            self._auto_post_process
            and not self._withdrawn
            and self._info is None
            and len(self._asked) == self._num_layers
        ):
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
            RegistrationError: layers are missing, or cannot be shared.
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

        def joint(refusal: str) -> str:
            told: Any = self._gather(transport, refusal)
            return next((refusal for refusal in told if refusal), "")

        placing = Placing(self._where, layers, pending, pool, broadcast, self._proof, joint)
        try:
            placement, refusal = self._place(placing, layers, transport)
            if placement is None:
                placing.replicate()
        finally:
            for loading in pending:
                loading.finish()
        if placement is None:
            self._withdraw_loaded(layers, refusal)
            return
        self._windows = placement.windows
        self._layers = {layer.layer_idx: layer for layer in layers}
        self._info = SeriesInfo(
            name=self.name,
            start_layer=start,
            num_layers=count,
            prefetch_step=k,
            windows=self._policy,
            window_count=len(placement.windows),
            group_ranks=self._ranks,
            rank_in_group=self._group.rank_in_group,
            transport=transport.name,
            rendezvous=transport.rendezvous,
            clock=transport.clock.name.lower(),
            layer_bytes=placement.layout.nbytes,
            owned_layers=len(owned),
            tag_bytes=placement.layout.tag_bytes,
        )
        if self._tagged:
            device = transport.device if isinstance(transport, DeviceTransport) else None
            self._check = OwnershipCheck(self._where, layers, placement.windows, device)
        arguments = self._where, layers, placement.windows, k
        journal = self._journal(run_id, self._info, transport)
        rolling = self._policy == "rolling"
        if isinstance(transport, DeviceTransport):
            circle = DeviceCircle(*arguments, transport, journal, self._describe_loss, rolling=rolling)
            self._graphs = self._circle = circle
        else:
            self._circle = Circle(*arguments, transport, journal, self._describe_loss, rolling=rolling)
        self._pending.clear()
        del pending, placing, placement
        return_freed()

    def _place(
        self, placing: Placing, layers: Sequence[SeriesLayer], transport: Transport
    ) -> tuple[Placement | None, str]:
        """Return where everything is; or None, and on every rank the same reason why it cannot be shared."""
        try:
            placement = placing.run(self._prefetch_step)
            refusal = self._proof.refute_placed(layers, placement) if self._proof is not None else ""
            layout = str(placement.layout)
        except Unshareable as unshareable:
            refusal = layout = str(unshareable)
        told: Any = self._gather(transport, (layout, refusal))
        require_equal(self._where, self._ranks, "tensors after post-processing", [layout for layout, _ in told])
        refusal = next((refusal for _, refusal in told if refusal), "")
        return (None, refusal) if refusal else (placement, "")

    def _withdraw_loaded(self, layers: Sequence[SeriesLayer], refusal: str) -> None:
        """Be over, with every layer whole on every rank: proved, where there is a way to try it."""
        mismatch = self._proof.mismatch(layers) if self._proof is not None else ""
        if mismatch or self._on_withdrawn is None:
            raise RegistrationError(
                f"{self._where}: cannot be shared: {refusal}" + (f"; and {mismatch}" if mismatch else "")
            )
        self._end_unused(refusal)
        self._on_withdrawn(refusal)

    def _transport(self) -> Transport:
        if self._given_transport is None:
            self._given_transport = self._new_transport(f"swtrace:{self.name}")
        return self._given_transport

    def _new_transport(self, description: str) -> Transport:
        """Return a transport for where the weights are: gloo's broadcasts block the host, others run on streams."""
        from swtrace.series.torch_transport import GLOO, TorchTransport, backend

        if backend(self._group) == GLOO:
            return TorchTransport(self._group, description=description, observe=self._recorder_source is not None)
        tensors = (tensor for module in self._modules.values() for tensor in payload_tensors(module).values())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        return DeviceTransport(
            TorchDevice(device), CollectiveMover(self._group, description=description), self._num_layers
        )

    def _agree(self, transport: Transport) -> str:
        mine = SeriesDescription(
            name=self.name,
            start_layer=self._start_layer,
            num_layers=self._num_layers,
            prefetch_step=self._prefetch_step,
            window_policy=self._policy,
            ownership_check=self._tagged,
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

    def _journal(self, run_id: str, info: SeriesInfo, transport: Transport) -> Journal:
        journal = self._records(run_id, info, transport)
        return journal if self._check is None else CheckingJournal(journal, self._check)

    def _records(self, run_id: str, info: SeriesInfo, transport: Transport) -> Journal:
        source = self._recorder_source
        if source is None:
            return SilentJournal()
        recorder = source(run_id, self._ranks[self._group.rank_in_group]) if callable(source) else source
        self._recorder_source = recorder
        series = recorder.add_series(info)
        if not isinstance(transport, DeviceTransport):
            return RecordingJournal(series, transport)
        stamps = transport.device.stamps(self._num_layers * STAMPS) if self._policy == "static" else None
        return DeviceJournal(series, transport.device, self._num_layers, every=self._time_every, stamps=stamps)

    # ---- forward -----------------------------------------------------------------------------

    def reach(self, layer_idx: int) -> None:
        """Tell that the forward has arrived at a layer: start the broadcast of the layer ``k`` ahead.

        Reaching the first layer begins a step, unless :meth:`begin_step` did.

        Raises:
            OrderError: not the layer that comes next.
            PeerLostError: a broadcast failed.
        """
        circle = self._circle
        if circle is None:
            self._refuse()
        circle.reach(layer_idx)

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

    def begin_step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> None:
        """Mark the beginning of a forward. A step that was not ended is ended first."""
        self._running().begin_step(phase=phase, tokens=tokens, requests=requests)

    def end_step(self, *, aborted: bool = False) -> None:
        """Mark the end of a forward, and make good what it left out.

        A forward that was begun, reached no layer and was not aborted was none: it is not counted. One that
        died before its first layer must be marked as aborted, so that its ranks stay in step.
        """
        self._running().end_step(aborted=aborted)

    @contextmanager
    def step(self, *, phase: Phase = Phase.OTHER, tokens: int = 0, requests: int = 0) -> Iterator[None]:
        """Mark a forward: its beginning, its end, and whether it died."""
        self.begin_step(phase=phase, tokens=tokens, requests=requests)
        try:
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
        if self._graphs is not None:
            self._graphs.join()

    def graph_follows(self) -> None:
        """Tell that a graph of a whole forward is captured or replayed next, where nobody can tell its end.

        For frameworks that replay by themselves. Within a marked step the replay is taken to end with the step.
        """
        self._device_circle("graph_follows").graph_follows()

    def _device_circle(self, call: str) -> DeviceCircle:
        if self._graphs is None:
            self._running()
            raise OrderError(f"{self._where}: {call}: its broadcasts block the host, which no graph can do")
        return self._graphs

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
        try:
            if self._circle is not None:
                self._circle.close()
        finally:
            if self._hooks is not None:
                self._hooks.remove()
            if self._given_transport is not None:
                self._given_transport.close()

    def statistics(self) -> SeriesStatistics:
        """Return the series in numbers."""
        circle = self._running()
        layers = self._layers.values()
        return SeriesStatistics(
            steps=circle.steps,
            aborted_steps=circle.aborted_steps,
            most_unwaited=circle.most_unwaited,
            operations=circle.operations,
            in_flight=sum(layer.operation is not None and not layer.operation.done() for layer in layers),
            owned_layers=sum(layer.owned for layer in layers),
            windows=len(self._windows),
            owned_bytes=sum(layer.buffer.nbytes for layer in layers if layer.buffer is not None),
            window_bytes=sum(window.buffer.nbytes for window in self._windows),
            replicated_bytes=self.info.replicated_bytes,
        )

    def _describe_loss(self, layer: SeriesLayer | None, error: RuntimeError) -> str:
        source = self._recorder_source
        return describe_loss(self._where, self._ranks, layer, error, None if callable(source) else source)

    def _lose(self, layer: SeriesLayer | None, error: RuntimeError) -> NoReturn:
        """Give up during post-processing."""
        self._refusal, self._refusal_text = PeerLostError, self._describe_loss(layer, error)
        raise PeerLostError(self._refusal_text) from error
