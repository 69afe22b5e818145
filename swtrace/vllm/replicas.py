"""Replicas: engines that hold the same weights and run independently of each other.

A server with ``--data-parallel-size`` has several replicas of a dense model. vLLM configures each of them as if it were
alone, so the process that makes the configuration notes how many there are. Servers that are started separately are
replicas of each other if ``SWTRACE_REPLICAS`` says so. Both may be combined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swtrace.settings import CONFIG_KEY

if TYPE_CHECKING:
    from swtrace.series import RankGroup
    from swtrace.settings import Settings

REPLICAS_KEY = f"{CONFIG_KEY}_replicas"


@dataclass(frozen=True, slots=True)
class Replica:
    """An engine's place among the replicas."""

    number: int
    count: int
    complete: bool
    """Whether all replicas of its server are on this host."""

    def group(self) -> RankGroup:
        """Return the ranks with this rank's position in each replica, by their numbers in the run."""
        import torch.distributed as dist

        from swtrace.series import RankGroup

        size = dist.get_world_size()
        return RankGroup(tuple(range(dist.get_rank(), self.count * size, size)), self.number)


def note_replicas(vllm_config: Any) -> None:
    """Write into the config how many replicas a server makes of a dense model, and how many of them are on this host.

    Call where the config is made.
    """
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size > 1 and not vllm_config.model_config.is_moe:
        counts = {"count": parallel.data_parallel_size, "here": parallel.data_parallel_size_local}
        vllm_config.additional_config = {**vllm_config.additional_config, REPLICAS_KEY: counts}


def own_replica(settings: Settings, vllm_config: Any) -> Replica:
    """Return the place of this process's engine."""
    parallel = vllm_config.parallel_config
    noted, index = {"count": 1, "here": 1}, 0
    if parallel.data_parallel_size == 1:  # otherwise its data-parallel ranks are in one torch world
        noted = vllm_config.additional_config.get(REPLICAS_KEY, noted)
        index = parallel.data_parallel_index
    return Replica(
        number=(settings.replica or 0) * noted["count"] + index,
        count=settings.replicas * noted["count"],
        complete=noted["count"] == noted["here"],
    )


def run_id_of_replicas(vllm_config: Any) -> str:
    """Return a run id for the replicas of one server, which are separate torch worlds; empty if it makes only one."""
    if REPLICAS_KEY not in vllm_config.additional_config:
        return ""
    instance, _, _ = vllm_config.instance_id.partition("_dp")  # with Ray, vLLM appends the replica's number
    return f"vllm-{instance}"
