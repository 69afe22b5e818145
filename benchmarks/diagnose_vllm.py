"""How well the diagnosis names faults in real vLLM: ``.venv-vllm/bin/python -m benchmarks.diagnose_vllm``.

Each case is an engine of its own on two CPU ranks. It begins healthy; then a fault begins in a rank, or a signal or a
busy process comes from outside. Beside it, a live roster reads the rings, and the diagnosis is asked four times a
second. Judge and table are those of the campaign on the demo's ranks (``benchmarks/diagnose_demo.py``).

*Replicas* run the same prompts with a whole model each. Only the series joins their steps. *Tensor parallel* workers
also reduce twice in each layer, and the other rank waits there for a slow one.

Run it on a quiet machine. The result is written to ``benchmarks/results/diagnose_vllm.txt``.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.diagnose import Judged, mistakes
from benchmarks.diagnose_demo import LOOK_EVERY_S, STOPS, Seen, judged_of, look, outcome, report, weigh
from swtrace.cli.vllm_ranks import RankFailedError, TinyLlama, Workload, fork_ranks, run_ranks, start_fork_server
from swtrace.observing import watch_rings
from tests.support.faulty_series import Kind
from tests.support.vllm.injected_faults import Act, Injected, Place, replicas, tensor_parallel
from tests.support.vllm.tiny_models import TinyDeepSeek

RESULT = Path(__file__).parent / "results" / "diagnose_vllm.txt"
RANKS = 2
_MEMORY = Path("/dev/shm")  # noqa: S108 - where rings and vLLM's own files are
_HEALTHY_S, _FAULTY_S = 3.0, 5.0
_LAST_LOOKS_S = 5.0
_SIGNALS = {Act.KILLED: signal.SIGKILL, Act.STOPPED: signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Case:
    """An engine, and what goes wrong in it."""

    kind: Kind
    fault: Injected | None
    parallel: bool = False
    """Tensor parallel workers instead of replicas."""

    @property
    def name(self) -> str:
        """Its name."""
        return f"{'tensor parallel' if self.parallel else 'replicas'}, {self.fault or 'healthy'}"

    @property
    def ranks(self) -> tuple[int, ...]:
        """The faulty ranks."""
        return () if self.fault is None else (self.fault.rank,)

    @property
    def about(self) -> str:
        """What it is, for a line."""
        return self.name


CASES = (
    Case(Kind.NONE, None),
    Case(Kind.STRAGGLER, Injected(Act.SLOW, 1, ms=2)),
    Case(Kind.INTERMITTENT, Injected(Act.SLOW, 0, ms=10, every=7)),
    Case(Kind.ENTRY, Injected(Act.LATE, 1, ms=5)),
    Case(Kind.RUN_DELAY, Injected(Act.BUSY, 0)),
    Case(Kind.HUNG, Injected(Act.HANG, 0)),
    Case(Kind.HUNG, Injected(Act.STOPPED, 1)),
    Case(Kind.DEAD, Injected(Act.KILLED, 1)),
    Case(Kind.NONE, None, parallel=True),
    Case(Kind.STRAGGLER, Injected(Act.SLOW, 1, ms=2), parallel=True),
    Case(Kind.HUNG, Injected(Act.HANG, 1), parallel=True),
    Case(Kind.DEAD, Injected(Act.KILLED, 0), parallel=True),
)


class Campaign:
    """Runs the cases, one after the other."""

    def __init__(self, folder: Path) -> None:
        """Write the models."""
        self._folder = folder
        TinyLlama().save(folder / "llama")
        TinyDeepSeek(layers=12).save(folder / "deepseek")
        start_fork_server()

    def judge(self, case: Case) -> tuple[Judged, list[float]]:
        """Run a case with the diagnosis beside it. Return what it said, and the ms of CPU time that each look took."""
        here = Path(tempfile.mkdtemp(dir=self._folder))
        (here / "rings").mkdir(mode=0o700)
        place = Place(here, _HEALTHY_S, _FAULTY_S)
        began_s = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            engine = pool.submit(self._run, case, place)
            try:
                seen = _watch(case, place, engine)
            finally:
                if case.kind in STOPS:
                    _end(place)
            try:
                engine.result()
            except RankFailedError:
                if case.kind not in STOPS:
                    raise
        return judged_of(case, seen, time.monotonic() - began_s), seen.looks_ms

    def _run(self, case: Case, place: Place) -> None:
        name = f"fault-{secrets.token_hex(4)}"
        environment = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(place.folder / "rings"),
            "SWTRACE_RUN_ID": name,
            "SWTRACE_SERIES": "self_attn.fused_qkv_a_proj" if case.parallel else "self_attn.o_proj",
            "SWTRACE_STRICT": "1",
            "SWTRACE_TIME_EVERY": "1",
            "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
        }
        if not case.parallel:
            workload = Workload(self._folder / "llama", inspect=partial(replicas, fault=case.fault, place=place))
            run_ranks(workload, place.folder, ranks=RANKS, environment=environment)
            return
        work: tuple[Any, ...] = (self._folder / "deepseek", name, case.fault, place)
        try:
            fork_ranks(tensor_parallel, work, place.folder, environment=environment)
        finally:
            # vLLM's CPU build forgets these, sharing or not.
            for left in _MEMORY.glob(f"{name}-*"):
                left.unlink()


def _pids(place: Place) -> list[int]:
    """Return the processes of the ranks that have started."""
    return [int(place.pid(rank).read_text()) for rank in range(RANKS) if place.pid(rank).exists()]


def _end(place: Place) -> None:
    for pid in _pids(place):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _watch(case: Case, place: Place, engine: Future[None]) -> Seen:
    """Look until the engine has ended, or has stopped for long enough."""
    seen, ready_s = Seen(), float("inf")
    with watch_rings(place.folder / "rings", keep_steps=True) as watch:
        while not engine.done() or (case.kind in STOPS and seen.begun_unix_ns):  # all ranks may end at once
            look_s = time.monotonic() + LOOK_EVERY_S
            now_s = time.monotonic()
            if not seen.ready and len(_pids(place)) == RANKS:
                seen.ready, ready_s = True, now_s
            if not seen.begun_unix_ns and now_s > ready_s + place.healthy_s:
                _signal(case, place)
            if seen.ready:
                findings = look(watch, seen)
                if place.begun.exists():  # also if it began just before the look
                    seen.begun_unix_ns = int(place.begun.read_text())
                weigh(case, findings, seen)
            if case.kind in STOPS and seen.begun_unix_ns and _enough(seen):
                break
            time.sleep(max(0.0, look_s - time.monotonic()))
    return seen


def _signal(case: Case, place: Place) -> None:
    """Send the signal of a fault that comes from outside."""
    if case.fault is None or case.fault.act not in _SIGNALS or place.begun.exists():
        return
    at_ns = time.time_ns()
    os.kill(int(place.pid(case.fault.rank).read_text()), _SIGNALS[case.fault.act])
    place.begun.write_text(str(at_ns))


def _enough(seen: Seen) -> bool:
    """Return whether to stop looking at ranks that stand still: a second after the name, or if none comes."""
    now_ns = time.time_ns()
    return now_ns > (seen.named_unix_ns + 1e9 if seen.named else seen.begun_unix_ns + _LAST_LOOKS_S * 1e9)


def lines(found: Sequence[Judged], looks_ms: Sequence[float], took_s: float) -> Iterator[str]:
    """Yield the result."""
    yield f"$ {' '.join(['python -m benchmarks.diagnose_vllm', *sys.argv[1:]])}"
    yield from (outcome(judged) for judged in found)
    yield ""
    yield from report(found, looks_ms)
    yield from mistakes(found)
    yield f"{took_s:.0f} s"


def main() -> None:
    """Run all cases; print and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=[str(kind) for kind in Kind], help="only these kinds")
    parser.add_argument("--save", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found: list[Judged] = []
    looks_ms: list[float] = []
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="swtrace-diagnose-vllm-", dir=_MEMORY) as folder:
        campaign = Campaign(Path(folder))
        for case in CASES:
            if arguments.kind and str(case.kind) not in arguments.kind:
                continue
            judged, took_ms = campaign.judge(case)
            found.append(judged)
            looks_ms += took_ms
            print(f"{time.monotonic() - begin_s:4.0f} s  {outcome(judged)}", file=sys.stderr, flush=True)
    text = "\n".join(line.rstrip() for line in lines(found, looks_ms, time.monotonic() - begin_s))
    print(text)
    arguments.save.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
