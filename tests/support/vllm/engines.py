"""Engines that are started separately, each in a process of its own that may be killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swtrace.cli.vllm_ranks import Patience, family, fork_ranks
from tests.support.vllm.cpu_gaps import allow_amx, name_shared_memory

PROMPTS = ((186, 398, 163), (317,), (73, 142, 455, 129, 135, 1, 5, 214, 220))
TOKENS = 6
PATIENCE_S = 240.0

Answers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, seen from outside. It answers all prompts again and again, until it is stopped."""

    folder: Path
    answers: Future[tuple[set[Answers], ...]]
    """The different answers that it gave to all prompts, one after the other."""

    @property
    def pid(self) -> int:
        """Its process, once it has answered."""
        return int((self.folder / "pid").read_text())

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.folder / "rank-0.log").read_text()

    def wait_for_rounds(self, more: int = 1) -> None:
        """Wait until it has answered all prompts so many times more."""
        goal = self._rounds() + more
        patience = Patience(PATIENCE_S, lambda: family(os.getpid()))
        while self._rounds() < goal:
            if self.answers.done():
                self.answers.result()
            assert not patience.over(), f"{self._rounds()} rounds instead of {goal}:\n{self.log[-4000:]}"
            time.sleep(0.05)

    def stop(self) -> set[Answers]:
        """Let it end after this round. Return the different answers that it gave."""
        (self.folder / "stop").touch()
        (answers,) = self.answers.result()
        return answers

    def memory(self) -> int:
        """Return its proportional set size in bytes: memory that processes share is divided between them.

        Without libraries: other tests' processes share them too, so their part depends on how many of these run.
        """
        held, library = 0, False
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            name, _, value = line.partition(":")
            if "-" in name:  # the range of addresses, before what is said about it
                library = ".so" in line
            elif name == "Pss" and not library:
                held += int(value.split()[0]) << 10
        return held

    def _rounds(self) -> int:
        file = self.folder / "rounds"
        return int(file.read_text() or 0) if file.exists() else 0


@contextmanager
def engines(folder: Path) -> Iterator[Engines]:
    """Stop the engines at the end."""
    with ThreadPoolExecutor() as pool:
        started = Engines(folder, pool)
        try:
            yield started
        finally:
            started.stop()


class Engines:
    """Starts engines."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._folder = folder
        self._pool = pool
        self._started: list[Engine] = []

    def start(
        self,
        model: Path,
        environment: dict[str, str],
        plain_linears: tuple[str, ...] = (),
        prompts: Sequence[Sequence[int]] = PROMPTS,
    ) -> Engine:
        """Start an engine."""
        here = self._folder / str(len(self._started))
        here.mkdir(parents=True)
        work = (model, here, plain_linears, prompts)
        environment = {"VLLM_HOST_IP": "127.0.0.1", **environment}
        engine = Engine(here, self._pool.submit(lambda: fork_ranks(_answer, work, here, environment=environment)))
        self._started.append(engine)
        return engine

    def stop(self) -> None:
        """Let all of them end."""
        for engine in self._started:
            (engine.folder / "stop").touch()


def _answer(
    model: Path, folder: Path, plain_linears: tuple[str, ...], prompts: Sequence[Sequence[int]]
) -> set[Answers]:
    from swtrace.series.loading import return_freed

    llm = _engine(model, plain_linears)
    return_freed()  # as a series does, to compare like with like
    (folder / "pid").write_text(str(os.getpid()))
    answers, rounds = set(), 0
    while not rounds or not (folder / "stop").exists():
        answers.add(_one_by_one(llm, prompts))
        rounds += 1
        (folder / "rounds").write_text(str(rounds))
    return answers


def answer_on_two_ranks(model: Path, rendezvous: Path, plain_linears: tuple[str, ...]) -> tuple[Answers, list[Any]]:
    """Answer all prompts in engines of two tensor parallel ranks each; return also what they share.

    Every two processes are an engine, and the engines are replicas of each other.
    """
    import torch.distributed as dist

    from swtrace.series.operations import numbered

    replica, rank = divmod(int(os.environ["RANK"]), 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", SWTRACE_REPLICA=str(replica))
    world = rendezvous.with_name(f"{rendezvous.name}-{replica}")
    name_shared_memory(world.name)
    dist.init_process_group("gloo", init_method=f"file://{world}", rank=rank, world_size=2)
    llm = _engine(model, plain_linears, tensor_parallel_size=2, distributed_executor_backend="external_launcher")
    answers = _one_by_one(llm, PROMPTS)
    infos = [series.info for series in numbered()]
    dist.barrier()
    return answers, infos


def _engine(model: Path, plain_linears: tuple[str, ...], **options: Any) -> Any:
    from vllm import LLM

    from swtrace.cli.vllm_ranks import _keep_plain

    allow_amx()
    if plain_linears:
        _keep_plain(plain_linears)
    return LLM(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        max_model_len=256,
        max_num_seqs=8,
        enable_prefix_caching=False,
        seed=0,
        disable_log_stats=True,
        **options,
    )


def _one_by_one(llm: Any, prompts: Sequence[Sequence[int]]) -> Answers:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    outputs = [llm.generate([{"prompt_token_ids": [*prompt]}], sampling, use_tqdm=False)[0] for prompt in prompts]
    return tuple(tuple(output.outputs[0].token_ids) for output in outputs)
