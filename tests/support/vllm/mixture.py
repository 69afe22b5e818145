"""Two data-parallel ranks of a mixture of experts, with unequal loads. Runs inside a rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.vllm.cpu_gaps import allow_amx, fill_expert_communication

SERIES = ("self_attn.o_proj", "self_attn.qkv_proj")
PROMPTS = (((11, 7, 300, 42), (5, 17), (99, 98, 97, 96, 95, 94, 93)), ((12, 8, 301, 43),))
TOKENS = (16, 5)
"""By rank. The second rank has less to do, and then runs dummy batches beside the first."""


@dataclass(frozen=True, slots=True)
class MixtureResult:
    """What one rank generated, and what it shared."""

    tokens: tuple[tuple[int, ...], ...]
    infos: tuple[Any, ...]
    outcome: dict[str, str]


def generate(model: Path, rendezvous: Path, *, shared: bool) -> MixtureResult:
    """Generate twice from this rank's prompts, so that a rank that was idle has to resume."""
    import torch.distributed as dist
    from vllm import LLM, SamplingParams

    from swtrace.cli.vllm_ranks import _keep_plain

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    allow_amx()
    fill_expert_communication()
    if not shared:
        _keep_plain(SERIES)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        data_parallel_size=ranks,
        distributed_executor_backend="external_launcher",
        kv_cache_memory_bytes=64 << 20,
        max_model_len=256,
        max_num_seqs=8,
        seed=0,
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS[rank], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in PROMPTS[rank]]
    outputs = [output for _ in range(2) for output in llm.generate(prompts, sampling, use_tqdm=False)]
    dist.barrier()  # no rank leaves while another still waits for its broadcasts
    tokens = tuple(tuple(output.outputs[0].token_ids) for output in outputs)
    if not shared:
        return MixtureResult(tokens, (), {})
    from swtrace.series.operations import numbered

    config = llm.llm_engine.vllm_config.additional_config
    return MixtureResult(tokens, tuple(series.info for series in numbered()), config["swtrace_outcome"])
