"""Layouts of vLLM's ranks, and what swtrace decides for each. Runs inside a rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of all ranks, as seen by rank 0."""

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    replicas: int = 1
    """Copies of the whole engine in one torch world, started by ``external_launcher``."""
    mixture: bool = False
    dense: int = 1
    """Data-parallel replicas of a dense model: vLLM configures each as if it were alone."""
    dense_here: int = 0
    """How many of them are on this host; 0: all."""
    replica: int = 0
    servers: int = 1
    """Servers that were started separately; this is the last one."""
    transport: str = "auto"
    device: str = "cpu"
    experimental: bool = False
    whole: bool = True
    """Whether tensor parallelism leaves the linear whole."""
    setting: str = "auto"
    backend: str = "gloo"
    observed: bool = False
    """Whether the linear is only observed."""


def choices(layouts: dict[str, Layout]) -> dict[str, str]:
    """Return for each layout the group chosen with its size, or ``refused``, and the reason."""
    return {name: _choice(layout) for name, layout in layouts.items()}


def _choice(layout: Layout) -> str:
    from types import SimpleNamespace as Namespace

    import torch

    from swtrace.settings import Settings
    from swtrace.vllm.groups import Refused, choose_group, observed_group
    from swtrace.vllm.replicas import REPLICAS_KEY

    stage = layout.tensor * layout.data
    sizes = {
        "tp": layout.tensor,
        "dp": layout.data,
        "ep": stage,
        "world": stage * layout.pipeline * layout.replicas,
    }
    config = Namespace(
        model_config=Namespace(is_moe=layout.mixture),
        parallel_config=Namespace(
            data_parallel_size=layout.data,
            data_parallel_index=layout.replica,
            pipeline_parallel_size=layout.pipeline,
            distributed_executor_backend="external_launcher" if layout.replicas > 1 else "mp",
        ),
        additional_config={REPLICAS_KEY: {"count": layout.dense, "here": layout.dense_here or layout.dense}},
    )
    weight = Namespace(device=torch.device(layout.device))
    linear = Namespace(tp_size=1 if layout.whole else layout.tensor, parameters=lambda: iter([weight]))
    settings = Settings(
        group=layout.setting,
        transport=layout.transport,
        replicas=layout.servers,
        replica=layout.servers - 1,
        experimental=layout.experimental,
    )
    with ExitStack() as stack:
        for name, size in sizes.items():
            group = Namespace(world_size=size, ranks=list(range(size)), device_group=None)
            stack.enter_context(patch(f"vllm.distributed.parallel_state.get_{name}_group", return_value=group))
        stack.enter_context(patch("torch.distributed.get_backend", return_value=layout.backend))
        stack.enter_context(patch("torch.distributed.get_world_size", return_value=sizes["world"]))
        stack.enter_context(patch("torch.distributed.get_rank", return_value=0))
        try:
            choose = observed_group if layout.observed else choose_group
            choice: Any = choose(settings, "attn.proj", linear, config)
        except Refused as refusal:
            return f"refused: {refusal}"
    return f"{choice.name} {','.join(map(str, choice.ranks))}: {choice.reason}"


def decided(
    rendezvous: Path, decisions: dict[int, dict[str, str]], timeout_s: float, replicas: int = 1
) -> dict[str, str]:
    """Return the agreement of all ranks if each would share over the given groups; an empty name refuses.

    With ``replicas``, the ranks are divided into as many torch worlds.
    """
    from types import SimpleNamespace as Namespace

    from torch import distributed as dist

    from swtrace.errors import DisagreementError
    from swtrace.settings import Settings
    from swtrace.vllm.groups import Choice, Refused
    from swtrace.vllm.startup_agreement import agree

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) // replicas
    number, place = divmod(rank, world)
    rendezvous.parent.mkdir(exist_ok=True)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}-{number}", rank=place, world_size=world)
    settings = Settings(
        timeout_s=timeout_s, directory=rendezvous.parent / "meet", run_id="r", replicas=replicas, replica=number
    )
    config = Namespace(additional_config={}, parallel_config=Namespace(data_parallel_size=1, data_parallel_index=0))
    mine = {
        path: Choice(group, Namespace(), "") if group else Refused(f"{path} is odd")
        for path, group in decisions.get(rank, {}).items()
    }
    try:
        agreed = agree(mine, settings, config) if rank in decisions else {}
    except DisagreementError as error:
        agreed = {"error": Refused(str(error))}
    dist.barrier()
    return {path: one.name if isinstance(one, Choice) else f"refused: {one}" for path, one in agreed.items()}


def engine_that_offloads(rendezvous: Path, environment: dict[str, str], offloader: str = "UVAOffloader") -> str:
    """Create the offloader of an engine that offloads weights itself; return the class that it gets."""
    from types import SimpleNamespace as Namespace

    from torch import distributed as dist
    from vllm.model_executor import offloader as offloaders

    from swtrace.series.recording import close
    from swtrace.vllm.replacements import _offloader

    os.environ.update(environment)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    config = Namespace(
        additional_config={},
        model_config=Namespace(served_model_name="m"),
        parallel_config=Namespace(world_size=1, data_parallel_size=1, data_parallel_index=3),
    )
    with patch("vllm.config.get_current_vllm_config", return_value=config):
        left: Any = _offloader(object.__new__(getattr(offloaders, offloader)))
    close()
    return type(left).__name__


def stages(total: int, partition: str) -> list[tuple[int, int]]:
    """Return the range of layers of each pipeline stage, after a check that swtrace and vLLM agree."""
    from types import SimpleNamespace as Namespace

    from torch import nn
    from vllm.model_executor.models.utils import make_layers

    from swtrace.vllm.layers import layer_range

    os.environ["VLLM_PP_LAYER_PARTITION"] = partition
    config = Namespace(model_config=Namespace(get_total_num_hidden_layers=lambda: total))
    count = partition.count(",") + 1
    ranges = []
    for stage in range(count):
        group = Namespace(rank_in_group=stage, world_size=count)
        with patch("vllm.distributed.parallel_state.get_pp_group", return_value=group):
            start, end, _ = make_layers(total, lambda prefix: nn.Identity(), prefix="layers")  # noqa: ARG005
            assert layer_range(config) == (start, end)
        ranges.append((start, end))
    return ranges


def shares(total: int, partition: str, cases: Sequence[tuple[str, int]]) -> list[list[tuple[tuple[int, ...], str]]]:
    """Return for each share and prefetch step the shared layers of each pipeline stage, and why it refuses them."""
    from types import SimpleNamespace as Namespace

    from swtrace.settings import Settings
    from swtrace.share import Share
    from swtrace.vllm.offloader import SeriesOffloader

    os.environ["VLLM_PP_LAYER_PARTITION"] = partition
    count = partition.count(",") + 1
    told = []
    for share, prefetch_step in cases:
        by_stage = []
        for stage in range(count):
            group = Namespace(rank_in_group=stage, world_size=count)
            offloader: Any = object.__new__(SeriesOffloader)
            offloader._settings = Settings(share=Share.parse(share), prefetch_step=prefetch_step)
            offloader._vllm_config = Namespace(model_config=Namespace(get_total_num_hidden_layers=lambda: total))
            with patch("vllm.distributed.parallel_state.get_pp_group", return_value=group):
                offloader._choose_layers()
            by_stage.append((offloader._shared, str(offloader._decide(None, "self_attn.o_proj"))))
        told.append(by_stage)
    return told
