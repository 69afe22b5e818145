"""An engine with two workers of an MLA model, in which forwards raise or a worker dies. Runs inside a rank."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.vllm.cpu_gaps import allow_amx, name_shared_memory

SERIES = "self_attn.fused_qkv_a_proj"
LAYERS = 12
LAYER = 2
"""Where forwards raise."""
RANKS = {"all": (0, 1), "answering": (0,), "silent": (1,)}
"""The ranks that raise. vLLM listens only to the first of its tensor parallel ranks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the engine ended."""

    error: str
    left: tuple[str, ...]
    """Workers that still ran some time after the engine was shut down."""


def engine(model: Path, name: str) -> Any:
    """Return an engine over two workers; ``name`` is unique to it."""
    from vllm import LLM
    from vllm.v1.executor import multiproc_executor

    allow_amx()
    name_shared_memory(name)
    # vLLM starts the workers of its CPU build as new processes. Forked from this one, which has imported
    # everything, they start in seconds.
    with patch.object(multiproc_executor, "get_mp_context", lambda: multiprocessing.get_context("fork")):
        return LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            kv_cache_memory_bytes=64 << 20,
            max_model_len=256,
            max_num_seqs=8,
            seed=0,
            disable_log_stats=True,
        )


def refused_calls(model: Path, name: str) -> dict[str, Any]:
    """Make calls that are refused if weights are shared. Return the errors, and what the engine does afterwards."""
    from vllm import SamplingParams

    llm = engine(model, name)
    core: Any = llm.llm_engine.engine_core.engine_core
    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False)
    prompt = [{"prompt_token_ids": [186, 398, 163]}]

    def answer() -> tuple[int, ...]:
        (output,) = llm.generate(prompt, sampling, use_tqdm=False)
        return tuple(output.outputs[0].token_ids)

    before, said, paused = answer(), [], []
    calls: tuple[Any, ...] = (
        lambda: llm.sleep(level=1),
        lambda: core.save_sharded_state("nowhere"),
        lambda: llm.collective_rpc("update_weights", args=(None,)),
    )
    for call in calls:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what the caller of vLLM sees)
            said.append(f"{type(error).__name__}: {error}")
        paused.append(core.is_scheduler_paused())
    ranks = llm.collective_rpc(_rank)  # would read an answer left by an earlier call
    result = {"said": said, "paused": paused, "ranks": ranks, "same": answer() == before}
    core.model_executor.shutdown()
    return result


def _rank(_worker: Any) -> int:
    import torch.distributed as dist

    return dist.get_rank()


def generate(llm: Any, tokens: int) -> None:
    """Generate ``tokens`` tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    llm.generate([{"prompt_token_ids": [186, 398, 163]}], sampling, use_tqdm=False)


def provoke(model: Path, name: str, fault: str) -> Outcome:
    """Generate without a fault, then with one, and shut the engine down; ``name`` is unique to it."""
    llm = engine(model, name)
    executor: Any = llm.llm_engine.engine_core.engine_core.model_executor
    workers = {handle.proc.name: handle.proc for handle in executor.workers}
    generate(llm, 4)
    ranks = RANKS.get(fault, ())
    executor.collective_rpc(_raise_in_forward if ranks else _die_in_forward, args=(ranks or (1,),))
    error = ""
    try:
        generate(llm, 4)
    except Exception as problem:  # noqa: BLE001 (whatever it is, it is what the caller of vLLM sees)
        error = f"{type(problem).__name__}: {problem}"
    executor.shutdown()
    deadline = time.monotonic() + 120
    while any(worker.is_alive() for worker in workers.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return Outcome(error, tuple(name for name, worker in workers.items() if worker.is_alive()))


def _raise_in_forward(worker: Any, ranks: tuple[int, ...]) -> None:
    """Make the forward of these ranks raise from now on."""
    import torch.distributed as dist

    def give_up(*_: Any, **__: Any) -> None:
        raise ValueError(f"rank {dist.get_rank()} gives up")

    if dist.get_rank() in ranks:
        worker.get_model().model.layers[LAYER].mlp.forward = give_up


def _die_in_forward(worker: Any, ranks: tuple[int, ...]) -> None:
    """Make these ranks kill themselves in their next forward."""
    import torch.distributed as dist

    if dist.get_rank() in ranks:
        worker.get_model().model.layers[LAYER].mlp.forward = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
