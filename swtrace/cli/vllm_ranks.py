"""Ranks of real vLLM on this machine's CPU, in one torch world: the workload of ``swtrace demo-vllm``.

With vLLM's ``external_launcher`` every rank runs the same prompts in lockstep with its own full copy of a dense
model. Such replicas of one world can share weights in a series. A fork server imports vLLM once, and every run forks
its ranks from there, which saves the import each time.
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
"""Variables that small CPU ranks on one machine need. Values that are already set win."""

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
"""Modules that each rank would otherwise import itself. Those that a version of vLLM lacks are skipped."""

_Result = TypeVar("_Result")

_POLL_S = 1.0
_GRACE_S = 5.0
"""How long the other ranks may take to fail, too, once one has failed."""


_SIGN_OF_LIFE = 0.01
"""Processes that use a smaller share of a core than this are idle: they wait for each other."""
_LIMIT = 10
"""Processes that are never idle may take this many times the patience. They may be spinning."""


class Patience:
    """Time limit for processes that counts only their idle time, so that a slow machine does not matter."""

    def __init__(self, idle_s: float, pids: Callable[[], Iterable[int]]) -> None:
        """Start to wait.

        Args:
            idle_s: how long they may be idle. Ten times this is the limit in any case.
            pids: returns the current processes.
        """
        self._idle_s = idle_s
        self._pids = pids
        self._busy_s = 0.0
        self._looked = self._alive = time.monotonic()
        self._limit = self._alive + _LIMIT * idle_s

    def over(self) -> bool:
        """Check the processes. Return whether to stop waiting."""
        now = time.monotonic()
        busy_s = sum(map(_processor_seconds, self._pids()))
        if now - self._looked >= 1.0:
            # If the sum is smaller than before, a process has ended, so something happened.
            if not 0 <= busy_s - self._busy_s < _SIGN_OF_LIFE * (now - self._looked):
                self._alive = now
            self._looked, self._busy_s = now, busy_s
        return now > min(self._alive + self._idle_s, self._limit)


def _processor_seconds(pid: int) -> float:
    """Return the processor time in seconds of a process and of its ended children; 0 if it is gone."""
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
    """A vLLM rank of the workload ended with an error; the message carries its traceback."""


@dataclass(frozen=True, slots=True)
class TinyLlama:
    """A dense Llama small enough to load in a second, with random weights and no tokenizer."""

    layers: int = 12
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 512

    def configuration(self) -> dict[str, Any]:
        """Return its Hugging Face configuration."""
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
        """Write configuration and bfloat16 weights as a Hugging Face checkpoint. Same fields, same weights."""
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
    """What every rank generates, greedily, from token ids."""

    model: Path
    prompts: tuple[tuple[int, ...], ...] = ((11, 7, 300, 42), (5, 17), (99, 98, 97, 96, 95, 94, 93))
    tokens: int = 16
    eager: bool = True
    additional_config: dict[str, Any] = field(default_factory=dict)
    plain_linears: tuple[str, ...] = ()
    """Linears that keep their plain weight without swtrace. On CPU vLLM packs weights for oneDNN, which rounds
    differently from the kernel that reads a window. To compare tokens, a control must use the same kernel."""
    inspect: Callable[[Any], Any] | None = None
    """Called in the rank with the ``vllm.LLM`` after generation. Its result is returned."""


@dataclass(frozen=True, slots=True)
class RankResult:
    """What one rank generated."""

    rank: int
    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    """Duration of the generation alone."""
    inspected: Any


def run_ranks(
    workload: Workload,
    folder: Path,
    *,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240.0,
) -> tuple[RankResult, ...]:
    """Run ``workload`` on ``ranks`` ranks of one torch world and return their results by rank.

    Raises the errors of :func:`fork_ranks`.
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
    """Call ``function(*arguments)`` in ``ranks`` processes that have imported vLLM. Return the results by rank.

    Each has its place in ``RANK`` and ``WORLD_SIZE``. ``environment`` overrides the fork server's own. Every
    other ``SWTRACE`` variable is removed. The processes append their output to ``folder`` (``rank-0.log``, ...).

    Raises:
        RankFailedError: a rank failed, died, or was idle for ``timeout_s``. No rank is left running.
    """
    context = start_fork_server()
    processes: list[ForkServerProcess] = []
    pipes: dict[Connection, int] = {}
    try:
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            # As torchrun would set it. A rendezvous by file needs no port, which another process could take.
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
    """Start the process that imports vLLM, unless it runs. The import continues in the background."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    saved = dict(os.environ)
    try:
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # the fork server reads its environment once, when it starts
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
        for stream in (1, 2):  # including what libraries write without Python
            os.dup2(output.fileno(), stream)
    for name in [name for name in os.environ if name == "SWTRACE" or name.startswith("SWTRACE_")]:
        del os.environ[name]
    os.environ.update(environment)
    # vLLM collects garbage often, and at its end after it has unfrozen everything. Each time it would go through
    # everything that the fork server imported, which takes half of a short run.
    gc.freeze()
    vars(gc)["unfreeze"] = lambda: None
    # vLLM inspects a model's class in a separate process to avoid initialising a GPU. That would import vLLM again.
    vars(sys.modules["vllm.model_executor.models.registry"])["_run_in_subprocess"] = lambda inspect: inspect()
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 (the parent must learn of every error)
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()


def _generate(workload: Workload, rendezvous: Path) -> RankResult:
    import torch
    import torch.distributed as dist
    from vllm import LLM, SamplingParams

    # vLLM's attention uses AMX tiles where the CPU has them, but relies on the caller to request them from the kernel.
    # Without a request the process is killed by SIGILL.
    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001 (there is no public way)
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
    dist.barrier()  # no rank leaves while another still waits for its broadcasts
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
