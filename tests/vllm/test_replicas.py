"""How many replicas there are, and which of them an engine is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swtrace.settings import Settings
from swtrace.vllm.replicas import Replica, note_replicas, own_replica, run_id_of_replicas


def server(*, size: int, local: int = 0, mixture: bool = False) -> Any:
    """Return vLLM's config where a server with ``size`` data-parallel engines makes it, with replicas noted."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=size, data_parallel_size_local=local or size),
        model_config=SimpleNamespace(is_moe=mixture),
        additional_config={"theirs": 1},
        instance_id="1795880040438866109",
    )
    note_replicas(config)
    return config


def engine(config: Any, index: int) -> Any:
    """Return the config as an engine of a dense model has it."""
    config.parallel_config = SimpleNamespace(data_parallel_size=1, data_parallel_index=index)
    return config


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_engine_knows_its_place_although_vllm_configures_it_alone(index: int) -> None:
    """The server that makes the config notes the number of replicas in it."""
    assert own_replica(Settings(), engine(server(size=3), index)) == Replica(index, 3, complete=True)


def test_replicas_of_separate_servers_are_counted_together() -> None:
    """The replicas of each server come after those of the servers before it."""
    second = Settings(replicas=2, replica=1)
    assert own_replica(second, engine(server(size=3), 1)) == Replica(4, 6, complete=True)
    assert own_replica(second, engine(server(size=1), 0)) == Replica(1, 2, complete=True)


def test_replicas_on_other_hosts_are_noticed() -> None:
    """They have no memory in common with those of this host."""
    assert not own_replica(Settings(), engine(server(size=4, local=2), 1)).complete


def test_a_mixture_of_experts_is_one_replica() -> None:
    """Its engines run in lockstep, in one torch world."""
    config = server(size=2, mixture=True)
    assert own_replica(Settings(), config) == Replica(0, 1, complete=True)
    assert config.additional_config == {"theirs": 1}


def test_replicas_of_one_server_have_a_run_id_in_common() -> None:
    """It comes from the instance id, which all of the server's processes have and vLLM's compile cache ignores."""
    assert run_id_of_replicas(server(size=2)) == "vllm-1795880040438866109"
    assert run_id_of_replicas(server(size=1)) == ""


def test_replicas_that_ray_starts_have_a_run_id_in_common_too() -> None:
    """Although vLLM gives each an instance id of its own."""
    config = server(size=2)
    config.instance_id += "_dp1"
    assert run_id_of_replicas(config) == run_id_of_replicas(server(size=2))
