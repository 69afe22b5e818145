"""Ranks of real vLLM on this machine's CPU, in one torch world: the workload of ``swtrace demo-vllm``.

With vLLM's ``external_launcher``, every rank runs the same prompts in lockstep with its own full copy of a dense
model. These replicas form one world, in which a series can share weights. A fork server imports vLLM once, and every
run forks its ranks from it, which saves the import each time.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from swtrace.errors import SwtraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    import torch

CPU_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables for small CPU ranks that share a machine. Values that the environment already has win."""

PRELOAD = (
    "torch.distributed",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.distributed.elastic_ep.elastic_execute",
)
"""Modules that every rank needs. The fork server imports them once, and skips those that this vLLM lacks."""

_Result = TypeVar("_Result")

_POLL_S = 1.0
_GRACE_S = 5.0
"""How long the other ranks may take to fail on their own after one has failed."""

_BUSY_SHARE = 0.01
"""Processes that use a smaller share of a core than this are idle: they wait for each other."""
_LIMIT = 10
"""Busy processes may take at most this many times the idle limit, because they may be spinning."""


class Patience:
    """Decides how long to wait for processes. Only their idle time counts, so a slow machine gets more time."""

    def __init__(self, idle_s: float, pids: Callable[[], Iterable[int]]) -> None:
        """Start the clock.

        Args:
            idle_s: how long they may be idle. Ten times as long is the limit in any case.
            pids: returns the processes that exist now.
        """
        self._idle_s = idle_s
        self._pids = pids
        self._busy_s = 0.0
        self._looked = self._alive = time.monotonic()
        self._limit = self._alive + _LIMIT * idle_s

    def over(self) -> bool:
        """Look at the processes; return whether to stop waiting."""
        now = time.monotonic()
        busy_s = sum(map(_processor_seconds, self._pids()))
        if now - self._looked >= 1.0:
            # Less time than before means that a process has ended, which is progress.
            if not 0 <= busy_s - self._busy_s < _BUSY_SHARE * (now - self._looked):
                self._alive = now
            self._looked, self._busy_s = now, busy_s
        return now > min(self._alive + self._idle_s, self._limit)


def _processor_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended; 0 if it is gone."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return 0.0
    return sum(map(int, rest.split()[11:15])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> set[int]:
    """Return a process and its descendants."""
    below: set[int] = {pid}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                below |= family(int(child))
    return below


class RankFailedError(SwtraceError):
    """A vLLM rank failed. The message has its traceback."""


@dataclass(frozen=True, slots=True)
class TinyLlama:
    """A dense Llama that loads in a second. It has random weights and no tokenizer."""

    layers: int = 12
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 512

    def configuration(self) -> dict[str, Any]:
        """Return the model's Hugging Face configuration."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "max_position_embeddings": 512,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }

    def save(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint in bfloat16. Equal models get equal weights."""
        import torch
        from safetensors.torch import save_file  # type: ignore[import-not-found,unused-ignore]  # comes with vLLM

        generator = torch.Generator().manual_seed(20)

        def random(*shape: int) -> torch.Tensor:
            # Large enough that every layer affects the generated tokens.
            wide = torch.randn(*shape, generator=generator) * (1.5 / math.sqrt(shape[-1]))
            return wide.to(torch.bfloat16)

        inner = 2 * self.hidden
        weights = {
            "model.embed_tokens.weight": random(self.vocabulary, self.hidden),
            "model.norm.weight": torch.ones(self.hidden, dtype=torch.bfloat16),
            "lm_head.weight": random(self.vocabulary, self.hidden),
        }
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                weights[f"{name}.self_attn.{projection}.weight"] = random(self.hidden, self.hidden)
            weights[f"{name}.mlp.gate_proj.weight"] = random(inner, self.hidden)
            weights[f"{name}.mlp.up_proj.weight"] = random(inner, self.hidden)
            weights[f"{name}.mlp.down_proj.weight"] = random(self.hidden, inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                weights[f"{name}.{norm}.weight"] = torch.ones(self.hidden, dtype=torch.bfloat16)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.configuration(), indent=2))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True, slots=True)
class Workload:
    """What every rank generates, greedily, from prompts of token ids."""

    model: Path
    prompts: tuple[tuple[int, ...], ...] = ((11, 7, 300, 42), (5, 17), (99, 98, 97, 96, 95, 94, 93))
    tokens: int = 16
    eager: bool = True
    additional_config: dict[str, Any] = field(default_factory=dict)
    plain_linears: tuple[str, ...] = ()
    """Linears whose weights vLLM must not pack. On the CPU it packs them for oneDNN, which rounds differently from the
    kernel that reads a window. A run without sharing must use the same kernel, or its tokens would differ."""
    inspect: Callable[[Any], Any] | None = None
    """Called with the ``vllm.LLM`` in each rank after generation; see :attr:`RankResult.inspected`."""


@dataclass(frozen=True, slots=True)
class RankResult:
    """What one rank generated."""

    rank: int
    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    """Time of the generation alone."""
    inspected: Any
    """What :attr:`Workload.inspect` returned."""


def run_ranks(
    workload: Workload,
    folder: Path,
    *,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240.0,
) -> tuple[RankResult, ...]:
    """Run ``workload`` on ``ranks`` ranks of one torch world and return their results by rank.

    Raises:
        RankFailedError: as in :func:`fork_ranks`.
    """
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    return fork_ranks(
        _generate, (workload, rendezvous), folder, ranks=ranks, environment=environment, timeout_s=timeout_s
    )


def fork_ranks(
    function: Callable[..., _Result],
    arguments: tuple[Any, ...],
    folder: Path,
    *,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240.0,
) -> tuple[_Result, ...]:
    """Call ``function(*arguments)`` in ``ranks`` processes that have imported vLLM, and return the results by rank.

    Each process has its rank in ``RANK`` and their number in ``WORLD_SIZE``. Its environment is the fork server's,
    without ``SWTRACE`` variables, plus ``environment``. Its output is appended to a log in ``folder``
    (``rank-0.log``, ...).

    Raises:
        RankFailedError: a rank failed, died, or was idle for ``timeout_s``. No rank is left running.
    """
    context = start_fork_server()
    processes: list[ForkServerProcess] = []
    pipes: dict[Connection, int] = {}
    try:
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            # As torchrun sets them. The rendezvous is a file, because another process could take a port.
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            process = context.Process(
                target=_rank,
                args=(function, arguments, {**(environment or {}), **place}, _log(folder, rank), theirs),
            )
            process.start()
            theirs.close()
            processes.append(process)
            pipes[ours] = rank
        pids = [cast("int", process.pid) for process in processes]
        patience = Patience(timeout_s, lambda: set().union(*map(family, pids)))
        results = _collect(pipes, ranks, folder, patience)
    finally:
        for process in processes:
            process.join(_GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()
    return tuple(results[rank] for rank in range(ranks))


def start_fork_server() -> ForkServerContext:
    """Start the fork server unless it is running. It imports vLLM in the background."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    saved = dict(os.environ)
    try:
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # the fork server copies them when it starts
        ensure_running()
    finally:
        for name in CPU_ENVIRONMENT.keys() - saved.keys():
            del os.environ[name]
    return context


def _collect(pipes: dict[Connection, int], ranks: int, folder: Path, patience: Patience) -> dict[int, Any]:
    results: dict[int, Any] = {}
    problems: dict[int, str] = {}
    waiting = dict(pipes)
    deadline = float("inf")
    while waiting and time.monotonic() < deadline and not patience.over():
        for ready in wait_for_any(list(waiting), timeout=_POLL_S):
            pipe = cast("Connection", ready)
            rank = waiting.pop(pipe)
            try:
                well, answer = pipe.recv()
            except EOFError:
                well, answer = False, f"died. The end of its output:\n{_tail(_log(folder, rank))}"
            if well:
                results[rank] = answer
            else:
                problems[rank] = answer
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    if len(results) < ranks:
        for rank in set(waiting.values()):
            problems.setdefault(rank, f"did not finish in time. The end of its output:\n{_tail(_log(folder, rank))}")
        raise RankFailedError("\n".join(f"vLLM rank {rank}: {text}" for rank, text in sorted(problems.items())))
    return results


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def _tail(log: Path, lines: int = 20) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as problem:
        return str(problem)


def _rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    log: Path,
    pipe: Connection,
) -> None:
    with log.open("ab") as output:
        for stream in (1, 2):  # also catches what libraries write from C
            os.dup2(output.fileno(), stream)
    for name in [name for name in os.environ if name == "SWTRACE" or name.startswith("SWTRACE_")]:
        del os.environ[name]
    os.environ.update(environment)
    # vLLM often collects garbage, at its end after unfreezing everything. Each time it would visit all objects that the
    # fork server imported, which takes half of a short run.
    gc.freeze()
    vars(gc)["unfreeze"] = lambda: None
    # vLLM inspects a model's class in another process, so as not to initialise a GPU. That would import vLLM again.
    vars(sys.modules["vllm.model_executor.models.registry"])["_run_in_subprocess"] = lambda inspect: inspect()
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 (the parent reports it, whatever it is)
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()


def _generate(workload: Workload, rendezvous: Path) -> RankResult:
    import torch
    import torch.distributed as dist
    from vllm import LLM, SamplingParams

    # vLLM's attention uses AMX tiles if the CPU has them, but does not ask the kernel for them. Without that, SIGILL
    # kills the process.
    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001 (torch has no public function)
        torch.cpu._init_amx()  # noqa: SLF001
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    if workload.plain_linears:
        _keep_plain(workload.plain_linears)
    llm = LLM(
        model=str(workload.model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=workload.eager,
        distributed_executor_backend="external_launcher",
        kv_cache_memory_bytes=64 << 20,
        max_model_len=256,
        max_num_seqs=8,
        additional_config=workload.additional_config,
        seed=0,
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=workload.tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in workload.prompts]
    begin = time.monotonic()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.monotonic() - begin
    inspected = workload.inspect(llm) if workload.inspect else None
    dist.barrier()  # a rank that left could not send what others still wait for
    tokens = tuple(tuple(output.outputs[0].token_ids) for output in outputs)
    return RankResult(rank=rank, tokens=tokens, seconds=seconds, inspected=inspected)


def _keep_plain(paths: tuple[str, ...]) -> None:
    import torch
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    process = UnquantizedLinearMethod.process_weights_after_loading

    def process_plain(self: Any, layer: Any) -> None:
        if any(layer.prefix.endswith(f".{path}") for path in paths):
            layer.cpu_linear = torch.nn.functional.linear
        else:
            process(self, layer)

    UnquantizedLinearMethod.process_weights_after_loading = process_plain
