"""Collectives of vLLM's own groups, and what the ranks' rings say meanwhile. Runs inside a rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swtrace.trace.marks import Marks
from swtrace.trace.ring_reader import RingReader
from tests.support.patience import eventually


def marks_of(folder: Path, rank: int) -> Marks:
    """Return what a rank's ring says that the rank is doing."""
    (path,) = folder.glob(f"*-{rank}-*")
    with RingReader.open(path) as reader:
        return reader.marks()


def names_in_ring(folder: str) -> list[str]:
    """Enter two collectives, rank 1 after rank 0; return the marks that rank 1 saw in rank 0's ring."""
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    from swtrace.series import recording
    from swtrace.vllm.collectives import mark_collectives

    rank, rings = int(os.environ["RANK"]), Path(folder, "rings")
    recording.process_recorder("run", rank)
    mark_collectives()
    mark_collectives()
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(2, rank, f"file://{folder}/meet", rank, backend="gloo")
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, backend="gloo")
    group: Any = parallel_state.get_tp_group()
    group.barrier()
    calls: tuple[Callable[[], object], ...] = (
        group.barrier,
        lambda: group.all_reduce(torch.ones(8)),
    )
    seen = []
    for call in calls:
        if rank == 1:
            eventually(lambda: marks_of(rings, 0).collective, "rank 0 to be in a collective")
            seen.append(marks_of(rings, 0).collective)
        call()
        assert marks_of(rings, rank).collective is None
        torch.distributed.barrier()
    return [kind.name for kind in seen if kind is not None]
