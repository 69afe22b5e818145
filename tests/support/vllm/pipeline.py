"""Pipeline stages of an MLA model, each on two tensor parallel ranks. Runs inside a rank."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.vllm.cpu_gaps import allow_amx, make_room_between_stages, name_shared_memory

SERIES = "self_attn.fused_qkv_a_proj"
PARTITION = (5, 4)
"""Layers of each stage. The first layer of the second stage is not a multiple of its number of layers."""
PREFETCH_STEP = 2
PROMPTS = ((186, 398, 163), (170, 296))
TOKENS = 8
Prompts = tuple[tuple[int, ...], ...]
"""Token ids of prompts, or of their answers."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What one rank generated, and what it shared."""

    tokens: Prompts
    layers: tuple[int, ...]
    """The layers that the rank built."""
    infos: tuple[Any, ...]
    outcome: dict[str, str]


@contextmanager
def unique_rendezvous(folder: Path) -> Iterator[Path]:
    """Yield a rendezvous file with a name that no other run on this host has; then remove the memory named after it.

    vLLM's CPU build leaves that memory behind, and a run that finds it cannot start (see ``name_shared_memory``).
    """
    rendezvous = folder / f"meet-{secrets.token_hex(4)}"
    try:
        yield rendezvous
    finally:
        for left in Path("/dev/shm").glob(f"{rendezvous.name}-*"):
            left.unlink()


def generate(model: Path, rendezvous: Path, *, shared: bool) -> StageResult:
    """Answer all prompts at once, on stages with :data:`PARTITION` layers."""
    llm = _engine(model, rendezvous, PARTITION, shared=shared)
    (tokens,) = _answers(llm, [PROMPTS], TOKENS)
    built = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model().model
    layers = tuple(range(built.start_layer, built.end_layer))
    if not shared:
        return StageResult(tokens, layers, (), {})
    from swtrace.series.operations import numbered

    config = llm.llm_engine.vllm_config.additional_config
    return StageResult(tokens, layers, tuple(series.info for series in numbered()), config["swtrace_outcome"])


def generate_one_by_one(model: Path, rendezvous: Path, prompts: Prompts, tokens: int, layers: int) -> Prompts:
    """Answer one prompt after the other, on a single stage and without sharing."""
    llm = _engine(model, rendezvous, (layers,), shared=False)
    return tuple(answer for (answer,) in _answers(llm, [(prompt,) for prompt in prompts], tokens))


def _engine(model: Path, rendezvous: Path, partition: tuple[int, ...], *, shared: bool) -> Any:
    import torch.distributed as dist
    from vllm import LLM

    from swtrace.cli.vllm_ranks import _keep_plain

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, partition))
    allow_amx()
    make_room_between_stages()
    name_shared_memory(rendezvous.name)
    if not shared:
        _keep_plain((SERIES,))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    return LLM(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        tensor_parallel_size=2,
        pipeline_parallel_size=len(partition),
        distributed_executor_backend="external_launcher",
        kv_cache_memory_bytes=64 << 20,
        max_model_len=256,
        max_num_seqs=8,
        seed=0,
        disable_log_stats=True,
    )


def _answers(llm: Any, batches: list[Prompts], tokens: int) -> list[Prompts]:
    import torch.distributed as dist
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    answers = []
    for batch in batches:
        outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in batch], sampling, use_tqdm=False)
        answers.append(tuple(tuple(output.outputs[0].token_ids) for output in outputs))
    dist.barrier()  # no rank leaves while another still waits for its broadcasts
    return answers
