"""Which ranks may share a linear, and which engines cannot share at all.

A group is legal if all of its ranks hold the same weights, and run the same number of forwards or pull.

Whether weights are equal depends on the layout of the linear. A linear that tensor parallelism does not split
is whole on every rank of a pipeline stage. A split one is equal on ranks with the same position
in their tensor parallel group. Pipeline stages hold different layers.

Whether ranks run the same number of forwards depends on who drives them. Those of one engine always run together. The
data-parallel engines of an MoE model exchange tokens for its experts, so vLLM gives an idle one dummy batches.
With ``external_launcher`` the caller is responsible for running all ranks of the world on the same prompts.
Replicas run independently, and a broadcast between them would hang at the first idle one. So they pull.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swtrace.series.communicator import GLOO, backend
from swtrace.units import listed
from swtrace.vllm.replicas import own_replica
from swtrace.vllm.worker_identity import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtrace.settings import Settings

REPLICAS = "replicas"


class Refused(Exception):  # noqa: N818 (the caller decides whether it becomes an error)
    """A requested linear cannot be shared. The message says why, and what would change that."""


class Unobservable(Refused):
    """Nor can it be observed."""


def explained(refusal: Refused) -> str:
    """Return why a linear is not shared, and that it can be observed instead, if it can."""
    instead = "" if isinstance(refusal, Unobservable) else "; SWTRACE_SHARE=none still shows compute per layer"
    return f"{refusal}{instead}"


class _Alone(Refused):
    """The group has one rank. The reason for another choice does not mention it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The group that shares a linear."""

    name: str
    """``tp``, ``dp``, ``tp x dp``, ``world`` or ``replicas``."""
    coordinator: Any
    """vLLM's ``GroupCoordinator``; for replicas a ``RankGroup``."""
    reason: str
    """Why this group is legal, and why other existing groups were not chosen."""
    ranks: tuple[int, ...] = ()
    """The run's rank numbers, in group order."""

    def __str__(self) -> str:
        """Return the choice as one line for the log."""
        return f"the {self.name} group ({listed('rank', self.ranks)}): {self.reason}"


def refuse_to_observe(vllm_config: Any) -> None:
    """Raise :class:`Unobservable` if nothing can be observed in this engine, let alone shared."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if getattr(parallel, "use_ubatching", False):
        raise Unobservable("micro-batches interleave two forwards in one step; turn off ubatching (DBO)")
    if getattr(parallel, "enable_elastic_ep", False):
        raise Unobservable("elastic expert parallelism changes the ranks while serving; turn it off")
    if getattr(model, "is_encoder_decoder", False):
        raise Unobservable(
            "encoder-decoder models cannot be shared or observed, because the encoder does not run in every step"
        )


def refuse_engine(vllm_config: Any, offloader: Any) -> None:
    """Raise :class:`Refused` if nothing can be shared in this engine."""
    from vllm.model_executor.offloader import NoopOffloader

    refuse_to_observe(vllm_config)
    model = vllm_config.model_config
    if not isinstance(offloader, NoopOffloader):
        raise Refused(f"vLLM offloads weights itself ({type(offloader).__name__}); turn its weight offloading off")
    if getattr(model, "enable_sleep_mode", False):
        raise Refused("sleep mode discards and reloads weights that the series manages; turn it off")
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        raise Refused("weights that are updated while serving cannot be shared; remove the weight transfer config")
    if vllm_config.load_config.load_format == "sharded_state":
        raise Refused("sharded_state checkpoints hold processed weights; use another load format")
    inductor = vllm_config.compilation_config.inductor_compile_config
    if inductor.get("max_autotune") or inductor.get("freezing"):
        raise Refused("inductor's freezing copies weights into the compiled model; remove max_autotune and freezing")


def choose_group(settings: Settings, path: str, linear: Any, vllm_config: Any) -> Choice:
    """Return the largest legal group whose ranks all hold ``linear``.

    ``SWTRACE_GROUP`` leaves one candidate, unless it is ``auto``. ``SWTRACE_EXPERIMENTAL`` allows groups whose
    broadcasts run on a device.

    Raises:
        Refused: no group is legal, or the requested one is not.
    """
    legal: list[Choice] = []
    refused: list[Refused] = []
    for candidate in _CANDIDATES[settings.group]:
        try:
            legal.append(candidate(path, linear, vllm_config, settings))
        except Refused as refusal:
            refused.append(refusal)
    if not legal:
        raise Refused("; ".join(dict.fromkeys(map(str, refused))))  # several may give the same reason
    choice = max(legal, key=lambda one: one.coordinator.world_size)  # of equally large ones the first
    others = dict.fromkeys(str(refusal) for refusal in refused if not isinstance(refusal, _Alone))
    reason = "; ".join((choice.reason, *others))
    if choice.name == REPLICAS:
        return replace(choice, reason=reason)
    transport = backend(choice.coordinator)
    if transport != GLOO and not settings.experimental:
        raise Refused(
            f"the {choice.name} group communicates through {transport}, and swtrace is not yet proven between devices; "
            "set SWTRACE_EXPERIMENTAL=1 to try it"
        )
    return replace(choice, reason=reason, ranks=run_ranks(choice.coordinator.ranks, settings, vllm_config))


def observed_group(settings: Settings, path: str, linear: Any, vllm_config: Any) -> Choice:
    """Return the group of a linear that is only observed: the one that would share it, if its ranks run in lockstep.

    Otherwise each rank is observed alone.
    """
    try:
        choice = choose_group(replace(settings, experimental=True), path, linear, vllm_config)
    except Refused:
        return alone(settings, vllm_config)
    if choice.name == REPLICAS:
        return alone(settings, vllm_config)
    return replace(choice, name=f"observed in {choice.name}")


def alone(settings: Settings, vllm_config: Any) -> Choice:
    """Return the group of this rank alone, whose linears can only be observed."""
    from torch import distributed as dist

    from swtrace.series import RankGroup

    rank = dist.get_rank()
    return Choice("observed alone", RankGroup((rank,), 0), "", run_ranks((rank,), settings, vllm_config))


def _tensor_parallel(path: str, linear: Any, _vllm_config: Any, _settings: Settings) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        raise _Alone("the tp group has one rank")
    _require_whole(path, linear, group.world_size)
    return Choice("tp", group, "tensor parallelism does not split the linear")


def _data_parallel(_path: str, _linear: Any, _vllm_config: Any, _settings: Settings) -> Choice:
    from vllm.distributed.parallel_state import get_dp_group

    group = get_dp_group()
    if group.world_size == 1:
        raise _Alone("the dp group has one rank")
    return Choice("dp", group, _IN_LOCKSTEP)


def _tensor_and_data_parallel(path: str, linear: Any, vllm_config: Any, settings: Settings) -> Choice:
    from vllm.distributed.parallel_state import get_ep_group

    _data_parallel(path, linear, vllm_config, settings)
    _tensor_parallel(path, linear, vllm_config, settings)
    # vLLM has no group of this name, but the experts of a stage are spread over exactly these ranks.
    return Choice("tp x dp", get_ep_group(), f"tensor parallelism does not split the linear, and {_IN_LOCKSTEP}")


def _world(path: str, linear: Any, vllm_config: Any, _settings: Settings) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group, get_world_group

    group, parallel = get_world_group(), vllm_config.parallel_config
    if group.world_size == 1:
        raise _Alone(
            "the world has one rank; start replicas, or several ranks in one torch world (torchrun and "
            "distributed_executor_backend=external_launcher), or use tensor parallelism with a replicated linear"
        )
    if parallel.pipeline_parallel_size > 1:
        raise Refused("the ranks of the world are pipeline stages and hold different layers")
    _require_whole(path, linear, get_tp_group().world_size)
    if parallel.distributed_executor_backend == "external_launcher":
        return Choice("world", group, "the external launcher runs all of its ranks on the same prompts")
    return Choice("world", group, "every rank holds the linear whole and runs in lockstep")


def _replicas(_path: str, linear: Any, vllm_config: Any, settings: Settings) -> Choice:
    replica = own_replica(settings, vllm_config)
    if replica.count == 1:
        raise _Alone("there is one replica")
    if settings.transport == "broadcast":
        raise Refused(
            "replicas are independent engines that do not run in lockstep, so a broadcast between them would hang; "
            "set SWTRACE_TRANSPORT=auto"
        )
    if not replica.complete:
        raise Refused("some replicas of this server are on other hosts, and only replicas of one host can share")
    device = next(linear.parameters()).device
    if device.type == "cuda" and not settings.experimental:
        raise Refused(f"pull is not yet proven on a GPU ({device}); set SWTRACE_EXPERIMENTAL=1 to try it")
    if device.type not in ("cpu", "cuda"):
        raise Refused(f"weights on {device} cannot be pulled")
    group = replica.group()
    return Choice(REPLICAS, group, "every replica holds the same weights, and pulls them", group.ranks)


_IN_LOCKSTEP = "data-parallel ranks of an MoE model run in lockstep"

_CANDIDATES: dict[str, tuple[Callable[[str, Any, Any, Settings], Choice], ...]] = {
    "tp": (_tensor_parallel,),
    "dp": (_data_parallel,),
    "world": (_world,),
    "replicas": (_replicas,),
    "auto": (_tensor_parallel, _data_parallel, _tensor_and_data_parallel, _world, _replicas),
}


def _require_whole(path: str, linear: Any, ranks: int) -> None:
    """Raise :class:`Refused` if each of ``ranks`` tensor parallel ranks holds only a part of the linear."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    whole = isinstance(linear, ReplicatedLinear) or getattr(linear, "tp_size", None) == 1
    if ranks > 1 and not whole:
        raise Refused(
            f"{path} is split over the {ranks} ranks of the tp group, so no two of them hold the same weight; "
            "name a replicated linear in SWTRACE_SERIES"
        )
