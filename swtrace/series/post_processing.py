"""Turns registered layers into a running series: agree, place, prove, open the ring.

Collective: all ranks learn what any rank finds, and either all end with a running series or all have every
layer whole.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from swtrace.errors import PeerLostError, RegistrationError, RingCreateError, RingFullError, TransportError
from swtrace.series.agreement import (
    RunIdProposal,
    SeriesDescription,
    TracingOutcome,
    agree,
    require_equal,
    require_equal_layers,
    settle_tracing,
)
from swtrace.series.circle import Circle
from swtrace.series.communicator import GLOO, backend, roll_call
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.device.device_transport import CollectiveMover, DeviceTransport
from swtrace.series.journal import Journal
from swtrace.series.layer import SeriesLayer, Window, WindowPool
from swtrace.series.ownership import CheckingJournal, OwnershipCheck
from swtrace.series.payload import PayloadLayout, own_tensors, payload_tensors, unsuitable
from swtrace.series.peer_loss import BEFORE_STEPS, Peers
from swtrace.series.placing import Placement, Placing, Unshareable
from swtrace.series.planned import planned
from swtrace.series.pull.device_pull_transport import DevicePullTransport
from swtrace.series.pull.ipc_mover import CudaMemory, IpcMover
from swtrace.series.pull.pull_transport import PullTransport
from swtrace.series.recording import RecorderSource, described_model, propose_run_id
from swtrace.series.references import (
    held_by_others,
    held_tensors,
    living_modules,
    referred_to_by_others,
    storage_of,
)
from swtrace.series.tensor_table import AbsentTensor
from swtrace.series.torch_transport import TorchTransport
from swtrace.series.transport import RECEIVER
from swtrace.series.unshared import unshared
from swtrace.settings import Settings
from swtrace.share import NONE
from swtrace.trace.identity import BROADCAST, PULL, SeriesInfo
from swtrace.trace.share_folder import ShareFolder, folder_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.plan_file import PlanFile
    from swtrace.series.constants import SeriesConstants
    from swtrace.series.group import Group
    from swtrace.series.loading import PendingLayer
    from swtrace.series.proof import Proof
    from swtrace.series.transport import Transport
    from swtrace.trace.recorder import Recorder


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningSeries:
    """The result of post-processing, if the series can be shared."""

    info: SeriesInfo
    layers: tuple[SeriesLayer, ...]
    """By position."""
    windows: tuple[Window, ...]
    circle: Circle[Any]


def pulls(group: Group, settings: Settings) -> bool:
    """Return whether a group's ranks pull: if the settings say so, or if they share no torch world."""
    return settings.transport == "pull" or (settings.transport == "auto" and group.device_group is None)


def new_transport(
    constants: SeriesConstants,
    modules: Mapping[int, nn.Module],
    peers: Peers,
    proposal: RunIdProposal,
    settings: Settings,
) -> Transport[Any]:
    """Return a transport: none to observe; pull, if chosen or if the ranks share no torch world; else by the backend.

    gloo's broadcasts block the host, others run on streams.

    Args:
        constants: of the series.
        modules: its linears.
        peers: its other ranks.
        proposal: the run id, under which ranks that pull meet.
        settings: the transport, the folder of rings, and how long to wait for a peer.

    Raises:
        PeerLostError: ranks are missing, or cannot be connected to.
        RegistrationError: the ranks cannot pull.
    """
    if constants.group.world_size == 1:  # it is observed: a group of one has nothing to share
        return unshared(constants.group, _device(modules), constants.num_layers)
    if pulls(constants.group, settings):
        return _pull(constants, modules, proposal, settings)
    description, timeout_s = f"swtrace:{constants.name}", settings.timeout_s
    try:
        roll_call(constants.group, description, timeout_s, peers)
    except TransportError as error:
        raise PeerLostError(f"{constants.where}, {BEFORE_STEPS}: {error}") from error
    if constants.observed:
        return unshared(constants.group, _device(modules), constants.num_layers)
    try:
        if backend(constants.group) == GLOO:
            # Connecting waits for a rank that dies meanwhile until the timeout.
            connect = partial(TorchTransport, constants.group, description=description, timeout_s=timeout_s)
            return peers.unless_gone(connect)
        mover = CollectiveMover(constants.group, description=description, timeout_s=timeout_s)
    except RuntimeError as error:
        raise PeerLostError(peers.describe_unconnected(error)) from error
    return DeviceTransport(TorchDevice(_device(modules)), mover, constants.num_layers)


def _pull(
    constants: SeriesConstants, modules: Mapping[int, nn.Module], proposal: RunIdProposal, settings: Settings
) -> Transport[Any]:
    where, group = constants.where, constants.group
    if group.device_group is None and not proposal.fixed:
        raise RegistrationError(f"{where}: set SWTRACE_RUN_ID to one value on all ranks, by which they find each other")
    device = _device(modules)
    if device.type not in ("cpu", "cuda"):
        raise RegistrationError(f"{where}: layers on {device} cannot be pulled; set SWTRACE_TRANSPORT=broadcast")
    if device.type == "cuda" and not settings.experimental:
        raise RegistrationError(
            f"{where}: pull is not yet proven on a GPU ({device}); set SWTRACE_EXPERIMENTAL=1 to try it, or "
            f"SWTRACE_TRANSPORT=broadcast"
        )
    path = settings.ring_directory() / folder_name(proposal.run_id, constants.name, constants.ranks)
    folder = ShareFolder(path, constants.ranks, group.rank_in_group, settings.timeout_s)
    try:
        if device.type == "cpu":
            return PullTransport(folder, group.rank_in_group)
        accelerator = TorchDevice(device)
        mover = IpcMover(CudaMemory(device), folder, group.rank_in_group)
        return DevicePullTransport(accelerator, mover, constants.num_layers)
    except TransportError as error:
        raise RegistrationError(f"{where}: {error}") from error


def _device(modules: Mapping[int, nn.Module]) -> torch.device:
    tensors = (tensor for module in modules.values() for tensor in payload_tensors(module).values())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def run_id_proposal(recorder: Recorder | RecorderSource | None, settings: Settings) -> RunIdProposal:
    """Return the run id that a rank would use, given where it records."""
    if recorder is None or callable(recorder):
        return propose_run_id(settings.run_id)
    return RunIdProposal(recorder.identity.run_id, fixed=True)


class PostProcessing:
    """Runs the post-processing of one series, once."""

    def __init__(
        self,
        constants: SeriesConstants,
        modules: Mapping[int, nn.Module],
        pending: Mapping[int, PendingLayer],
        transport: Transport[Any],
        peers: Peers,
        recorder: Recorder | RecorderSource | None,
        proposal: RunIdProposal,
        tracing: TracingOutcome,
        proof: Proof | None,
        settings: Settings,
        plan: PlanFile | None,
        *,
        observed_bytes: int = 0,
    ) -> None:
        """Prepare, without communication.

        Args:
            constants: of the series.
            modules: its linears, by layer.
            pending: how far they are loaded, by layer.
            transport: no operation issued yet.
            peers: its other ranks.
            recorder: where to record; see :class:`~swtrace.series.series.Series`.
            proposal: the run id that this rank would use.
            tracing: what this rank reports to the others about its tracing, unless opening the ring fails.
            proof: tries the weights, if there is a way to.
            settings: the run id and the place of the ring.
            plan: what the rank was started with, if anything.
            observed_bytes: bytes of the largest layer, if the series is only observed.
        """
        self._constants = constants
        self._modules = modules
        self._pending = pending
        self._transport = transport
        self._peers = peers
        self._recorder = recorder
        if not callable(recorder):
            peers.recorder = recorder
        self._proposal = proposal
        self._tracing = tracing
        self._proof = proof
        self._settings = settings
        self._plan = plan
        self._observed_bytes = observed_bytes
        self._own_views: list[tuple[int, nn.Module, str]] = []
        """Attributes of layers that are views of the layer's own tensors: layer, module and name."""

    def run(self) -> RunningSeries | str:
        """Move every layer to its place.

        Returns:
            The running series; or, on all ranks, the same reason why it cannot be shared, with every layer whole.

        Raises:
            DisagreementError: the ranks describe different series.
            RegistrationError: layers are missing, unsuitable, or no longer compute the same.
            RingCreateError: some rank cannot be traced, and ``SWTRACE_STRICT=1``.
            PeerLostError: a rank died.
        """
        constants, transport = self._constants, self._transport
        run_id = self._agree()
        layers = tuple(
            SeriesLayer(
                position,
                layer_idx,
                self._modules[layer_idx],
                constants.source(layer_idx),
                owned=constants.owns(layer_idx),
            )
            for position, layer_idx in enumerate(constants.layers)
        )
        if constants.observed:
            return self._start(run_id, layers, (), self._observed_bytes)
        owned = frozenset(layer.position for layer in layers if layer.owned)
        pool = WindowPool(constants.windows, constants.num_layers, constants.prefetch_step, owned)
        pending = [self._pending[layer.layer_idx] for layer in layers]
        placing = Placing(
            constants.where,
            layers,
            pending,
            pool,
            self._broadcast,
            self._store,
            self._proof,
            self._joint,
            fingerprinted=transport.rendezvous == RECEIVER,
        )
        try:
            placement, refusal = self._place(placing, layers)
            if placement is None:
                placing.replicate()
        finally:
            for loading in pending:
                loading.finish()
        if placement is None:
            mismatch = self._proof.mismatch(layers) if self._proof is not None else ""
            if mismatch:
                raise RegistrationError(f"{constants.where}: cannot be shared: {refusal}; and {mismatch}")
            return refusal
        layout = placement.layout
        return self._start(run_id, layers, placement.windows, layout.nbytes, tag_bytes=layout.tag_bytes)

    def _start(
        self,
        run_id: str,
        layers: tuple[SeriesLayer, ...],
        windows: tuple[Window, ...],
        layer_bytes: int,
        *,
        tag_bytes: int = 0,
    ) -> RunningSeries:
        """Open the ring and return the running series."""
        constants, transport = self._constants, self._transport
        info = SeriesInfo(
            name=constants.name,
            start_layer=constants.start_layer,
            stack_layers=constants.stack_layers,
            layers=constants.layers,
            prefetch_step=constants.prefetch_step,
            windows=constants.windows,
            window_count=len(windows),
            group_ranks=constants.ranks,
            rank_in_group=constants.group.rank_in_group,
            transport=transport.name,
            rendezvous=transport.rendezvous,
            clock=transport.clock.name.lower(),
            layer_bytes=layer_bytes,
            owned_layers=sum(layer.owned for layer in layers),
            kind=NONE if constants.observed else PULL if transport.rendezvous == RECEIVER else BROADCAST,
            queue=transport.queue,
            tag_bytes=tag_bytes,
        )
        info = replace(info, planned=planned(self._plan, info, described_model()))
        recorder, tracing = self._open_ring(run_id, info)
        outcomes: Any = self._gather(tracing)
        info = replace(info, untraced=settle_tracing(constants.where, constants.ranks, outcomes))
        self._peers.untraced = frozenset(rank.rank for rank in info.untraced)
        journal = self._journal(recorder, info)
        if constants.tagged:
            check = OwnershipCheck(constants.where, layers, windows, transport.device)
            journal = CheckingJournal(journal, check)
        circle = transport.circle(
            constants.where,
            layers,
            windows,
            constants.prefetch_step,
            transport,
            journal,
            self._peers.describe_loss,
            rolling=constants.windows == "rolling",
        )
        self._hide_own_views()
        return RunningSeries(info, layers, windows, circle)

    def _agree(self) -> str:
        constants = self._constants
        problem = "" if constants.observed else self._problem() or self._other_owner()
        mine = SeriesDescription(
            name=constants.name,
            start_layer=constants.start_layer,
            stack_layers=constants.stack_layers,
            shared_layers=constants.layers,
            prefetch_step=constants.prefetch_step,
            window_policy=constants.windows,
            ownership_check=constants.tagged,
            time_every=constants.time_every or "auto",
            transport=self._transport.name,
            group_ranks=constants.ranks,
            missing_layers=constants.missing(self._modules),
            tensors=str(next(iter(self._pending.values())).layout) if self._pending else "none",
            loaded=tuple(self._pending[layer_idx].fingerprint for layer_idx in sorted(self._pending)),
            problem=problem,
        )
        try:
            return agree(constants.where, self._transport, mine, self._proposal)
        except RuntimeError as error:
            self._lose(None, error)

    def _problem(self) -> str:
        """Return what loading did to this rank's layers that a series does not support; empty if nothing."""
        constants, first = self._constants, -1
        for layer_idx, module in sorted(self._modules.items()):
            where = f"{constants.where}, layer {layer_idx}"
            for name, tensor in own_tensors(module).items():
                problem = unsuitable(tensor)
                if not problem and tensor.is_meta:
                    problem = "is still on the meta device; load it, or give it memory with to_empty()"
                if problem:
                    return f"{where}: {name} {problem}"
            pending = self._pending[layer_idx]
            registered = pending.layout
            pending.layout = PayloadLayout.of(payload_tensors(module), tagged=constants.tagged)
            if first < 0:
                first = layer_idx
            elif pending.layout != self._pending[first].layout:
                return (
                    f"{where}: loading replaced its tensors: registered as {registered}, loaded as {pending.layout}; "
                    f"layer {first} has {self._pending[first].layout}"
                )
        return ""

    def _other_owner(self) -> str:
        """Return which module outside a layer has one of its tensors; empty if none has.

        Such a module would read an arbitrary layer from the window, or memory that was never loaded.
        """
        if not any(map(self._referred_to, self._modules)):
            return ""  # almost always, without the search through all objects of the process
        tensors: dict[int, tuple[int, str]] = {}
        storages: dict[int, int] = {}
        inside: dict[int, int] = {}
        for layer_idx, module in self._modules.items():
            inside.update((id(part), layer_idx) for part in module.modules())
            own = payload_tensors(module)
            tensors.update((id(tensor), (layer_idx, name)) for name, tensor in own.items())
            memory = self._pending[layer_idx].other_memory
            if self._constants.owns(layer_idx):
                memory = [tensor.untyped_storage() for tensor in own.values()]
            storages.update((storage._cdata, layer_idx) for storage in memory)  # noqa: SLF001
        seen: defaultdict[int, set[int]] = defaultdict(set)
        for module in living_modules():
            for name, tensor in held_tensors(module, seen[inside.get(id(module), -1)]):
                layer_idx, own_name = tensors.get(id(tensor), (-1, ""))
                if layer_idx >= 0 and inside.get(id(module), -1) == layer_idx:
                    continue
                if layer_idx < 0:
                    layer_idx, own_name = storages.get(storage_of(tensor), -1), "the memory of its weight"
                if layer_idx >= 0 and vars(module).get(name) is tensor and inside.get(id(module), -1) == layer_idx:
                    self._own_views.append((layer_idx, module, name))
                elif layer_idx >= 0:
                    return (
                        f"{self._constants.where}, layer {layer_idx}: {own_name} also belongs to "
                        f"{type(module).__name__}.{name}, which is not part of the layer: tied weights cannot be "
                        f"shared; give that module a tensor of its own"
                    )
        return ""

    def _hide_own_views(self) -> None:
        """Replace views that layers had of their weights with absent tensors, because they would show other bytes."""
        for layer_idx, module, name in self._own_views:
            reason = (
                f"{self._constants.where}, layer {layer_idx}: {type(module).__name__}.{name} was a view of the weight "
                f"before post-processing and is no longer valid; make it in forward, or make it a parameter or a buffer"
            )
            vars(module)[name] = AbsentTensor(vars(module)[name], reason)

    def _referred_to(self, layer_idx: int) -> bool:
        """Return whether anything but a layer refers to its tensors, or to their present or former memory."""
        module, pending = self._modules[layer_idx], self._pending[layer_idx]
        if pending.other_memory or referred_to_by_others(module):
            return True
        return self._constants.owns(layer_idx) and bool(held_by_others(payload_tensors(module).values()))

    def _place(self, placing: Placing, layers: Sequence[SeriesLayer]) -> tuple[Placement | None, str]:
        """Return the placement; or None and, on every rank, the same reason why the series cannot be shared.

        Raises:
            RegistrationError: a layer's own post-processing raised an error on this rank.
            DisagreementError: it raised an error on other ranks, or made different tensors there.
        """
        try:
            placement = placing.run(self._constants.prefetch_step)
            proof = self._proof
            refusal = (
                placing.left_behind
                if proof is None
                else proof.refute_placed(layers, placement.holders, placement.moved)
            )
            layout, digests = str(placement.layout), placement.digests
        except Unshareable as unshareable:
            refusal = layout = str(unshareable)
            digests = ()
        except RegistrationError as error:
            self._gather((str(error), (), ""))
            raise
        answers: Any = self._gather((layout, digests, refusal))
        constants = self._constants
        layouts = [layout for layout, _, _ in answers]
        require_equal(constants.where, constants.ranks, "tensors after post-processing", layouts)
        refusal = next((refusal for _, _, refusal in answers if refusal), "")
        if not refusal:
            all_digests = [digests for _, digests, _ in answers]
            what = "the weights after post-processing, which must give the same on every rank"
            require_equal_layers(constants.where, constants.ranks, constants.layers, what, all_digests)
        return (None, refusal) if refusal else (placement, "")

    def _open_ring(self, run_id: str, info: SeriesInfo) -> tuple[Recorder | None, TracingOutcome]:
        """Return the recorder and what to report about it; a rank that cannot record does not stop the series."""
        recorder, tracing = self._recorder, self._tracing
        if recorder is None:
            return None, tracing
        try:
            if callable(recorder):
                recorder = recorder(run_id, self._constants.rank, self._settings)
                self._peers.recorder = recorder
            recorder.entry(info)
        except RingCreateError as error:
            return None, replace(tracing, untraced=error.reason, failed=True)
        except RingFullError as error:
            logger.warning("swtrace: %s runs untraced: %s", self._constants.where, error)
            return None, replace(tracing, untraced=str(error), failed=True)
        return recorder, tracing

    def _journal(self, recorder: Recorder | None, info: SeriesInfo) -> Journal[Any]:
        if recorder is None:
            return Journal()
        return self._transport.journal(recorder.add_series(info), info, every=self._constants.time_every)

    # ---- communication with the other ranks --------------------------------------------------

    def _broadcast(self, layer: SeriesLayer, buffer: Tensor) -> None:
        try:
            self._transport.broadcast(buffer, layer)
        except RuntimeError as error:
            self._lose(layer, error)

    def _store(self, layer: SeriesLayer, payload: Tensor) -> Tensor:
        try:
            return self._transport.store(payload, layer)
        except RuntimeError as error:
            self._lose(layer, error)

    def _gather(self, item: object) -> list[object]:
        try:
            return self._transport.gather(item)
        except RuntimeError as error:
            self._lose(None, error)

    def _joint(self, refusal: str) -> str:
        """Return the first refusal, in rank order; empty if no rank has one."""
        refusals: Any = self._gather(refusal)
        return next((refusal for refusal in refusals if refusal), "")

    def _lose(self, layer: SeriesLayer | None, error: RuntimeError) -> NoReturn:
        raise PeerLostError(self._peers.describe_loss(layer, error)) from error
