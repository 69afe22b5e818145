"""Additions to vLLM's CPU build that these tests need. Called in a rank before it makes an engine."""

from __future__ import annotations

import os
from typing import Any


def allow_amx() -> None:
    """Request AMX tiles from the kernel. vLLM's attention uses them without a request, which ends in SIGILL."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def fill_expert_communication() -> None:
    """Add to the CPU communicator the two operations with which data-parallel ranks exchange tokens for experts."""
    import torch
    from torch import distributed as dist
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def all_gatherv(self: Any, given: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        assert dim == 0
        gathered = []
        for tensor in [given] if isinstance(given, torch.Tensor) else given:
            rows = sizes or [tensor.shape[0]] * self.world_size
            padded = tensor.new_zeros((max(rows), *tensor.shape[1:]))
            padded[: tensor.shape[0]] = tensor
            parts = [torch.empty_like(padded) for _ in rows]
            dist.all_gather(parts, padded, group=self.device_group)
            gathered.append(torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]))
        return gathered[0] if isinstance(given, torch.Tensor) else gathered

    def reduce_scatterv(self: Any, given: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:
        total = given.movedim(0, dim).contiguous().to(torch.float32)
        dist.all_reduce(total, group=self.device_group)
        rows = sizes or [total.shape[0] // self.world_size] * self.world_size
        begin = sum(rows[: self.rank_in_group])
        mine = total[begin : begin + rows[self.rank_in_group]]
        return mine.to(given.dtype).movedim(0, dim).contiguous()

    assert not {"all_gatherv", "reduce_scatterv"} & vars(CpuCommunicator).keys(), "vLLM has these now"
    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


def make_room_between_stages() -> None:
    """Make the tensors into which a later pipeline stage receives.

    vLLM makes them in its profile run. Its CPU build skips that run for eager models, so the first request would fail.
    """
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    initialize = CPUModelRunner.initialize_kv_cache

    def initialize_with_room(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        if not get_pp_group().is_first_rank and self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    CPUModelRunner.initialize_kv_cache = initialize_with_room


def name_shared_memory(name: str) -> None:
    """Give this run's tensor and pipeline parallel groups unique file names in ``/dev/shm``.

    Under ``external_launcher`` vLLM's CPU build gives every run of a host the same names and leaves the files behind,
    sharing or not. A second run would not start.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    make = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"{name}-{make(communicator).lstrip('/-')}")


def fill() -> None:
    """Add all of this in each process of a server. Entry point of a vLLM plugin."""
    allow_amx()
    if os.environ.get("TEST_EXPERTS"):
        fill_expert_communication()
    plain = os.environ.get("TEST_PLAIN_LINEARS")
    if plain:
        from swtrace.cli.vllm_ranks import _keep_plain

        _keep_plain(tuple(plain.split(",")))
