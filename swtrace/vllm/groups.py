"""Which ranks may share a linear, and which engines can share nothing: every refusal has its home here.

A group is legal if each of its ranks holds the same weights and runs the same number of forwards.
Equal weights follow from how the linear is laid out over the ranks. Equal numbers follow from who
drives them: the ranks of one engine always run together; with ``external_launcher`` the caller runs
all ranks of the world on the same prompts and vouches for it; engines of dense data parallelism run
when they please, and a broadcast between them would hang at the first idle one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


class Refused(Exception):  # noqa: N818 (not an error: the caller decides whether it becomes one)
    """Something asked for cannot be shared; the message says why and what would change it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The group that shares a linear."""

    name: str
    """``tp`` or ``world``."""
    coordinator: Any
    """vLLM's ``GroupCoordinator``."""


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


def choose_group(setting: str, path: str, linear: Any, vllm_config: Any) -> Choice:
    """Return the group over which ``linear`` is replicated and that runs in lockstep.

    ``setting`` is one of :data:`swtrace.settings.GROUPS`.

    Raises:
        Refused: there is none, or the one asked for is not legal.
    """
    choice = _legal_group(setting, path, linear, vllm_config)
    backend = torch.distributed.get_backend(choice.coordinator.device_group)
    if backend != "gloo":
        raise Refused(f"the {choice.name} group talks through {backend}, whose broadcasts cannot be timed yet")
    return choice


def _legal_group(setting: str, path: str, linear: Any, vllm_config: Any) -> Choice:
    if setting == "tp":
        return _tensor_parallel(path, linear)
    if setting == "world":
        return _world(path, linear, vllm_config)
    if setting == "dp":
        raise Refused("SWTRACE_GROUP=dp is not supported: only tp and world are")
    try:
        return _tensor_parallel(path, linear)
    except Refused as no_tensor_parallel:
        try:
            return _world(path, linear, vllm_config)
        except Refused as no_world:
            raise Refused(f"{no_tensor_parallel}; {no_world}") from None


def _tensor_parallel(path: str, linear: Any) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        raise Refused("the tp group has one rank")
    if not _replicated(linear):
        raise Refused(
            f"{path} is split over the {group.world_size} ranks of the tp group, so no two hold the same weight; "
            "name a replicated linear in SWTRACE_SERIES"
        )
    return Choice("tp", group)


def _world(path: str, linear: Any, vllm_config: Any) -> Choice:
    from vllm.distributed.parallel_state import get_tp_group, get_world_group

    group, parallel = get_world_group(), vllm_config.parallel_config
    if group.world_size == 1:
        raise Refused(
            "the world has one rank; start several ranks in one torch world (torchrun and "
            "distributed_executor_backend=external_launcher) or use tensor parallelism with a replicated linear"
        )
    if parallel.data_parallel_size > 1:
        raise Refused("the ranks of a world with data parallelism are not supported")
    if parallel.pipeline_parallel_size > 1:
        raise Refused("the ranks of the world are pipeline stages and hold different layers")
    if get_tp_group().world_size > 1 and not _replicated(linear):
        raise Refused(f"{path} is split over tensor parallel ranks, which are part of the world")
    return Choice("world", group)


def _replicated(linear: Any) -> bool:
    """Whether every tensor parallel rank holds the whole linear."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    return isinstance(linear, ReplicatedLinear) or getattr(linear, "tp_size", None) == 1
