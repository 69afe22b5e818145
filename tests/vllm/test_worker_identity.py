"""The numbers of a worker's ranks in a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from swtrace.vllm.worker_identity import run_ranks


def config(*, size: int, world: int, **parallel: int) -> SimpleNamespace:
    """Return vLLM's config of an engine of ``world`` ranks, one of ``size`` data-parallel ones."""
    return SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=size, world_size=world, **parallel),
    )


@pytest.mark.parametrize(("replica", "ranks"), [(0, (0, 1)), (1, (2, 3)), (3, (6, 7))])
def test_ranks_of_dense_replicas_are_numbered_consecutively(replica: int, ranks: tuple[int, ...]) -> None:
    """Each replica is a torch world of its own, whose ranks come after those of the replicas before it."""
    assert run_ranks((0, 1), config(size=1, world=2, data_parallel_index=replica)) == ranks


def test_ranks_of_one_world_keep_their_numbers() -> None:
    """The data-parallel ranks of a mixture of experts are in one torch world, where each already has its own number."""
    assert run_ranks((2, 3), config(size=2, world=2, data_parallel_index=1)) == (2, 3)


def test_a_vllm_without_the_index_has_one_replica() -> None:
    """Where the config has no index of a replica, ranks keep their numbers."""
    assert run_ranks((0, 1), config(size=1, world=2)) == (0, 1)
