"""Which ranks may share a linear, and which engines can share nothing: every refusal has its home here.

A group is legal if each of its ranks holds the same weights and runs the same number of forwards.

Equal weights follow from how the linear is laid out: a linear that tensor parallelism does not split
is whole on every rank of a pipeline stage; one that it splits is the same on ranks with the same place
in their tensor parallel group. Stages of a pipeline hold different layers.

Equal numbers follow from who drives the ranks. Those of one engine always run together. The
data-parallel engines of an MoE model meet in its experts, so vLLM gives an idle one dummy batches.
Those of a dense model run when they please, and a broadcast between them would hang at the first idle
one. With ``external_launcher`` the caller runs all ranks of the world on the same prompts, and vouches
for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swtrace.series.communicator import GLOO, backend

if TYPE_CHECKING:
    from collections.abc import Callable


class Refused(Exception):  # noqa: N818 (not an error: the caller decides whether it becomes one)
    """Something asked for cannot be shared; the message says why and what would change it."""


class _Alone(Refused):
    """The group has one rank: there is nothing to explain to somebody who got another."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The group that shares a linear."""

    name: str
    """``tp``, ``dp``, ``tp x dp`` or ``world``."""
    coordinator: Any
    """vLLM's ``GroupCoordinator``."""
    reason: str
    """Why this group is legal, and why no other was taken that is there."""

    def __str__(self) -> str:
        """Return the choice in a line, for a log."""
        ranks = ", ".join(map(str, self.coordinator.ranks))
        return f"the {self.name} group (ranks {ranks}): {self.reason}"


def refuse_engine(vllm_config: Any, offloader: Any) -> None:
    """Raise :class:`Refused` where the engine as a whole rules sharing out."""
    from vllm.model_executor.offloader import NoopOffloader

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if not isinstance(offloader, NoopOffloader):
        raise Refused(f"vLLM offloads weights itself ({type(offloader).__name__}); turn its weight offloading off")
    if getattr(parallel, "use_ubatching", False):
        raise Refused("micro-batches interleave two forwards in one step; turn ubatching (DBO) off")
    if getattr(parallel, "enable_elastic_ep", False):
        raise Refused("elastic expert parallelism changes the ranks while serving; turn it off")
    if getattr(model, "enable_sleep_mode", False):
        raise Refused("sleep mode discards and reloads weights behind the windows; turn it off")
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        raise Refused("weights that are updated while serving cannot be shared; remove the weight transfer config")
    if vllm_config.load_config.load_format == "sharded_state":
        raise Refused("sharded_state checkpoints hold processed weights; use another load format")
    if getattr(model, "is_encoder_decoder", False):
        raise Refused("an encoder does not run in every step; encoder-decoder models cannot share")
    inductor = vllm_config.compilation_config.inductor_compile_config
    if inductor.get("max_autotune") or inductor.get("freezing"):
        raise Refused("freezing copies weights into the compiled model; remove max_autotune and freezing")


def choose_group(setting: str, path: str, linear: Any, vllm_config: Any, *, experimental: bool = False) -> Choice:
    """Return the largest group over which ``linear`` is replicated and that runs in lockstep.

    ``setting`` is one of :data:`swtrace.settings.GROUPS`; all but ``auto`` leave one candidate. ``experimental``
    allows groups whose broadcasts run on a device.

    Raises:
        Refused: there is none, or the one asked for is not legal.
    """
    legal: list[Choice] = []
    refused: list[Refused] = []
    for candidate in _CANDIDATES[setting]:
        try:
            legal.append(candidate(path, linear, vllm_config))
        except Refused as refusal:
            refused.append(refusal)
    if not legal:
        raise Refused("; ".join(dict.fromkeys(map(str, refused))))  # several may say the same
    choice = max(legal, key=lambda one: one.coordinator.world_size)  # of equal ones the first: the narrower idea
    talks_through = backend(choice.coordinator)
    if talks_through != GLOO and not experimental:
        raise Refused(
            f"the {choice.name} group talks through {talks_through}, between devices, where swtrace is not proven; set "
            "SWTRACE_EXPERIMENTAL=1 to try it"
        )
    others = dict.fromkeys(str(refusal) for refusal in refused if not isinstance(refusal, _Alone))
    return Choice(choice.name, choice.coordinator, "; ".join((choice.reason, *others)))


def _tensor_parallel(path: str, linear: Any, _vllm_config: Any) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        raise _Alone("the tp group has one rank")
    _require_whole(path, linear, group.world_size)
    return Choice("tp", group, "tensor parallelism does not split the linear")


def _data_parallel(_path: str, _linear: Any, vllm_config: Any) -> Choice:
    from vllm.distributed.parallel_state import get_dp_group

    _refuse_dense_replicas(vllm_config)
    group = get_dp_group()
    if group.world_size == 1:
        raise _Alone("the dp group has one rank")
    return Choice("dp", group, _IN_LOCKSTEP)


def _tensor_and_data_parallel(path: str, linear: Any, vllm_config: Any) -> Choice:
    from vllm.distributed.parallel_state import get_ep_group

    _data_parallel(path, linear, vllm_config)
    _tensor_parallel(path, linear, vllm_config)
    # vLLM has no group of this name, but the experts of a stage are spread over just these ranks.
    return Choice("tp x dp", get_ep_group(), f"tensor parallelism does not split the linear, and {_IN_LOCKSTEP}")


def _world(path: str, linear: Any, vllm_config: Any) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group, get_world_group

    group, parallel = get_world_group(), vllm_config.parallel_config
    _refuse_dense_replicas(vllm_config)
    if group.world_size == 1:
        raise _Alone(
            "the world has one rank; start several ranks in one torch world (torchrun and "
            "distributed_executor_backend=external_launcher) or use tensor parallelism with a replicated linear"
        )
    if parallel.pipeline_parallel_size > 1:
        raise Refused("the ranks of the world are pipeline stages and hold different layers")
    _require_whole(path, linear, get_tp_group().world_size)
    if parallel.distributed_executor_backend == "external_launcher":
        return Choice("world", group, "who launched its ranks runs all of them on the same prompts")
    return Choice("world", group, "every rank holds the linear whole and runs in lockstep")


_IN_LOCKSTEP = "data-parallel ranks of an MoE model run in lockstep"

_CANDIDATES: dict[str, tuple[Callable[[str, Any, Any], Choice], ...]] = {
    "tp": (_tensor_parallel,),
    "dp": (_data_parallel,),
    "world": (_world,),
    "auto": (_tensor_parallel, _data_parallel, _tensor_and_data_parallel, _world),
}


def _require_whole(path: str, linear: Any, ranks: int) -> None:
    """Raise :class:`Refused` where each of ``ranks`` tensor parallel ranks holds a part of the linear only."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    whole = isinstance(linear, ReplicatedLinear) or getattr(linear, "tp_size", None) == 1
    if ranks > 1 and not whole:
        raise Refused(
            f"{path} is split over the {ranks} ranks of the tp group, so no two hold the same weight; "
            "name a replicated linear in SWTRACE_SERIES"
        )


def _refuse_dense_replicas(vllm_config: Any) -> None:
    """Raise :class:`Refused` on a data-parallel replica of a dense model."""
    parallel = vllm_config.parallel_config
    # vLLM makes each replica believe that it is alone. What it was asked for still shows in its index and, on the
    # first one, in the limit that elastic expert parallelism would grow to.
    replicas = max(
        parallel.data_parallel_size,
        getattr(parallel, "data_parallel_index", 0) + 1,
        getattr(parallel, "elastic_ep_max_dp_size", None) or 1,
    )
    if replicas > 1 and not vllm_config.model_config.is_moe:
        raise Refused(
            "data-parallel replicas of a dense model are engines of their own that run when they please, and a "
            "broadcast between them would hang; use tensor parallelism with a replicated linear"
        )
