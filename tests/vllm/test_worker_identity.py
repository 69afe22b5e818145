"""The numbers of a worker's ranks in a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from swtrace.settings import Settings
from swtrace.vllm.replicas import REPLICAS_KEY
from swtrace.vllm.worker_identity import run_ranks


def config(*, size: int, replicas: int = 1, **parallel: int) -> SimpleNamespace:
    """Return vLLM's config of an engine with ``size`` data-parallel ranks in its torch world."""
    return SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=size, **parallel),
        additional_config={REPLICAS_KEY: {"count": replicas, "here": replicas}},
    )


@pytest.fixture(autouse=True)
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every torch world two ranks."""
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)


@pytest.mark.parametrize(("replica", "ranks"), [(0, (0, 1)), (1, (2, 3)), (3, (6, 7))])
def test_ranks_of_dense_replicas_are_numbered_consecutively(replica: int, ranks: tuple[int, ...]) -> None:
    """Each replica is a torch world of its own, whose ranks come after those of the replicas before it."""
    assert run_ranks((0, 1), Settings(), config(size=1, replicas=4, data_parallel_index=replica)) == ranks


def test_ranks_of_separate_servers_are_numbered_consecutively() -> None:
    """All ranks of a server come after those of the servers before it, whether it makes one replica or several."""
    second = Settings(replicas=2, replica=1)
    assert run_ranks((0, 1), second, config(size=1, data_parallel_index=0)) == (2, 3)
    assert run_ranks((0, 1), second, config(size=1, replicas=3, data_parallel_index=2)) == (10, 11)


def test_ranks_of_one_world_keep_their_numbers() -> None:
    """The data-parallel ranks of a mixture of experts are in one torch world, where each already has its own number."""
    assert run_ranks((0, 1), Settings(), config(size=2, data_parallel_index=1)) == (0, 1)
