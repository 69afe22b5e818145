"""Real vLLM on two CPU ranks: what `swtrace plan` predicts from a run that shares nothing, and what then happens.

As a user would: `swtrace probe` times the transports for the layer's size; vLLM runs with ``SWTRACE_SHARE=none`` and is
recorded; `swtrace plan` recommends settings. Then vLLM runs with these, and with two other settings. Every repetition
has a recording of its own, from which the others of the same repetition are predicted; only the recommendation is that
of the first. Within a repetition, the settings run in random order.

vLLM packs a weight that is not shared for oneDNN, whose kernel is faster than the one that reads a shared weight. No
planner knows that from a run that shares nothing. So the linears that are not shared keep plain weights here, except in
the runs called *packed*, which show what this leaves out.

A step is a decode step of the whole batch. As by default, swtrace times the first 64 steps: the planner reads them, and
they give the stall, of the most stalled rank. Almost all later steps are untimed, and tracing them costs less. Both
step times are those of the rank with the longest: the mean of timed steps, and that of later ones by the wall clock,
without the gap between steps. Memory is what the linears of a rank hold in the end, each storage counted once.

Needs vLLM: ``.venv-vllm/bin/python -m benchmarks.plan_vllm``. A repetition takes a minute and a half.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import swtrace
from swtrace.cli.vllm_ranks import TinyLlama, Workload, run_ranks, start_fork_server
from swtrace.share import NONE, Share
from swtrace.trace.schema import Phase

SERIES = "self_attn.o_proj"
RANKS = 2
PROMPTS = tuple((7 + request, 9, 11, 13) for request in range(4))
LATER = 80
"""Steps that are timed by the wall clock."""
FIRST = 60
"""Decode steps of which surely all are timed."""
WARM_UP = 8
"""Decode steps that do not count."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run shares, and how."""

    share: str
    prefetch_step: int
    transport: str
    packed: bool = False
    """Whether vLLM packs the linears that are not shared."""

    @classmethod
    def of(cls, prediction: dict[str, Any]) -> Setting:
        """Return that of a prediction in the plan's JSON."""
        return cls(prediction["share"], prediction["prefetch_step"], prediction["transport"])

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that set it."""
        shared = {"SWTRACE_PREFETCH_STEP": str(self.prefetch_step), "SWTRACE_TRANSPORT": self.transport}
        return {"SWTRACE_SHARE": self.share} | (shared if self.shares else {})

    @property
    def shares(self) -> bool:
        """Return whether anything is shared."""
        return self.share != NONE

    def plain(self, layers: int) -> tuple[str, ...]:
        """Return the linears that are not shared but keep a plain weight."""
        shared = Share.parse(self.share).layers(0, layers)
        resident = () if self.packed else tuple(layer for layer in range(layers) if layer not in shared)
        return tuple(f"layers.{layer}.{SERIES}" for layer in resident)

    def __str__(self) -> str:
        """Return it in words."""
        if not self.shares:
            return f"not shared{', packed' if self.packed else ''}"
        return f"{self.share}, k = {self.prefetch_step}, {self.transport}"


UNSHARED = Setting(NONE, 0, "broadcast")
PACKED = replace(UNSHARED, packed=True)
OTHERS = (Setting("all", 1, "broadcast"), Setting("1/2", 2, "pull"), Setting("1/4", 1, "broadcast"))
"""The first two of these that are not recommended run, too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave."""

    step_ms: float
    """Of steps that are not timed."""
    timed_ms: float
    stall: float
    memory_mib: float
    """0 where vLLM packs the weights out of sight."""


@dataclass(frozen=True, slots=True)
class Case:
    """A prediction, and the run that followed."""

    repetition: int
    setting: Setting
    predicted: dict[str, Any] | None
    outcome: Outcome


def measure(llm: Any) -> tuple[float, int]:
    """Generate again; return ns per step in a rank, and the bytes that the series' linears hold."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=LATER, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in PROMPTS]
    begin = time.monotonic_ns()
    llm.generate(prompts, sampling, use_tqdm=False)
    return (time.monotonic_ns() - begin) / LATER, _held_bytes(llm)


def _held_bytes(llm: Any) -> int:
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for name, parameter in worker.get_model().named_parameters()
        if f".{SERIES}." in name
    }
    return sum(storages.values())


class Bench:
    """Runs vLLM and swtrace in one folder."""

    def __init__(self, folder: Path, model: TinyLlama) -> None:
        """Write the model."""
        self._folder, self._layers, self._runs = folder, model.layers, 0
        model.save(folder / "model")
        self._workload = Workload(folder / "model", PROMPTS, FIRST + 8, inspect=measure)
        start_fork_server()

    def probe(self, layer_bytes: int) -> Path:
        """Time the transports between two ranks; return the profile."""
        profile = self._folder / "profile.json"
        self._swtrace("probe", "--ranks", str(RANKS), "--bytes", str(layer_bytes), "--output", str(profile))
        return profile

    def run(self, setting: Setting) -> tuple[Outcome, Path]:
        """Run vLLM; return what it gave, and the recording."""
        self._runs += 1
        folder = self._folder / str(self._runs)
        rings = folder / "rings"
        rings.mkdir(mode=0o700, parents=True)
        environment = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(rings),
            "SWTRACE_SERIES": SERIES,
            "SWTRACE_STRICT": "1",
            **setting.environment,
        }
        workload = replace(self._workload, plain_linears=setting.plain(self._layers))
        ranks = run_ranks(workload, folder, ranks=RANKS, environment=environment)
        recording = folder / "run.swrec"
        self._swtrace("record", "--dir", str(rings), "--until-end", "--output", str(recording))
        return _outcome(rings, [rank.inspected for rank in ranks]), recording

    def plan(self, recording: Path, profile: Path, max_stall: str, settings: Sequence[Setting] = ()) -> dict[str, Any]:
        """Return the plan for a recording, with predictions for what is tried by default, or for these settings."""
        options: list[str] = []
        for setting in settings:
            if setting.shares:
                options += ["--share", setting.share]
        if settings:
            options += ["--prefetch-step", ",".join(str(each.prefetch_step) for each in settings if each.shares)]
        text = self._swtrace(
            *(
                "plan",
                str(recording),
                "--profile",
                str(profile),
                "--phase",
                "decode",
                "--warmup",
                str(WARM_UP),
                "--steps",
                f":{FIRST}",
            ),
            *("--max-stall", max_stall, *options, "--json"),
        )
        document: dict[str, Any] = json.loads(text)
        plan: dict[str, Any] = document["series"][0]
        return plan

    def _swtrace(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "swtrace", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=self._folder).stdout


def _outcome(rings: Path, measured: Sequence[tuple[float, int]]) -> Outcome:
    with swtrace.open(rings) as session:
        steps = [step for step in session.steps() if step.common_phase is Phase.DECODE]
    took, stalled, later = [], [], []
    for rank in range(RANKS):
        of_rank = [step for step in steps if step.ended[rank]][WARM_UP:FIRST]
        gaps = [after.begin_ns[rank] - before.end_ns[rank] for before, after in pairwise(of_rank)]
        later.append(measured[rank][0] - float(np.median(gaps)))
        took.append(statistics.mean(float(step.duration_ns[rank]) for step in of_rank))
        stalled.append(statistics.mean(float(step.stall_ns[rank].sum()) for step in of_rank))
    ratio = float((np.array(stalled) / np.array(took)).max())
    return Outcome(max(later) / 1e6, max(took) / 1e6, ratio, max(held for _, held in measured) / 2**20)


def cases(bench: Bench, profile: Path, repetitions: int, max_stall: str) -> Iterator[Case]:
    """Yield the cases of all repetitions."""
    chance = random.Random(1)  # noqa: S311 - reproducible
    settings: list[Setting] = []
    for repetition in range(repetitions):
        _, recording = bench.run(UNSHARED)
        if not settings:
            chosen = bench.plan(recording, profile, max_stall)
            print(chosen["answer"], *chosen["details"], sep="\n")
            recommended = Setting.of(chosen["chosen"])
            others = [each for each in OTHERS if each != recommended]
            settings = list(dict.fromkeys((UNSHARED, PACKED, recommended, *others[:2])))
        plan = bench.plan(recording, profile, max_stall, settings)
        for setting in chance.sample(settings, len(settings)):
            print(f"repetition {repetition + 1} of {repetitions}: {setting}", file=sys.stderr)
            predicted = next((each for each in plan["predictions"] if Setting.of(each) == setting), None)
            outcome, _ = bench.run(setting)
            yield Case(repetition, setting, predicted, outcome)


def table(found: Sequence[Case]) -> Iterator[str]:
    """Yield a line for each run, ordered by setting, and one with the medians."""
    yield (f"{'':<24}{'step time, ms':>50}{'stall, % of step time':>46}{'MiB of the linear':>23}")
    heads = f"{'predicted':>24}{'measured':>10}{'error':>8}{'':>8}"
    yield f"{'setting':<24}{heads}{'timed':>8}{heads}{'predicted':>12}{'held':>6}"
    for setting in ordered(found):
        of_one = [case for case in found if case.setting == setting]
        for case in of_one:
            yield f"{setting!s:<24}{_step(case)}{_stall(case)}{_memory(case)}".rstrip()
        steps, stalls = [case.outcome.step_ms for case in of_one], [100 * case.outcome.stall for case in of_one]
        yield f"{'  measured, median':<24}{_spread(steps, 'ms'):>34}{_spread(stalls, '%'):>58}"


def ordered(found: Sequence[Case]) -> list[Setting]:
    """Return the settings, in the order of the plan's table."""
    return sorted({case.setting for case in found}, key=lambda each: (each.shares, -each.packed, str(each)))


def summary(found: Sequence[Case]) -> Iterator[str]:
    """Yield sentences on the runs that share, and on what the machine's noise lets nobody know."""
    steps, stalls, inside = [], [], [0, 0]
    for case in found:
        if case.predicted is None or not case.setting.shares:
            continue
        step, stall, outcome = case.predicted["step_seconds"], case.predicted["stall_ratio"], case.outcome
        steps.append(_missed(case))
        stalls.append(100 * abs(stall["value"] - outcome.stall))
        inside[0] += _inside(step, outcome.step_ms / 1e3)
        inside[1] += _inside(stall, outcome.stall)
    yield (
        f"{len(steps)} runs that share: step time missed by {statistics.mean(steps):.1f} % on average, within the "
        f"interval in {inside[0]}; stall missed by {statistics.mean(stalls):.1f} points, within in {inside[1]}."
    )
    unshared = {case.repetition: case for case in found if case.setting == UNSHARED}
    again = statistics.mean(map(_missed, unshared.values()))
    yield f"The run that shares nothing, repeated: step times differ by {again:.1f} % on average."
    yield "As a multiple of the step time of that repetition's run that shares nothing, medians:"
    for setting in ordered(found):
        pairs = [(case, unshared[case.repetition]) for case in found if case.setting == setting and setting.shares]
        if pairs:
            predicted = statistics.median(_predicted_ms(case) / _predicted_ms(base) for case, base in pairs)
            measured = [case.outcome.step_ms / base.outcome.step_ms for case, base in pairs]
            spread = f"{statistics.median(measured):.2f} [{min(measured):.2f}, {max(measured):.2f}]"
            yield f"  {setting!s:<24}predicted {predicted:.2f}, measured {spread}"


def _predicted_ms(case: Case) -> float:
    value: float = 1e3 * case.predicted["step_seconds"]["value"] if case.predicted else float("nan")
    return value


def _missed(case: Case) -> float:
    """Return by how much the step time was missed, in % of what was measured."""
    return abs(100 * _predicted_ms(case) / case.outcome.step_ms - 100)


def _step(case: Case) -> str:
    measured, timed = f"{case.outcome.step_ms:>10.1f}", f"{case.outcome.timed_ms:>8.1f}"
    if case.predicted is None:
        return f"{'-':>24}{measured}{'':>16}{timed}"
    predicted, step = case.predicted["step_seconds"], case.outcome.step_ms
    error = 100 * (_predicted_ms(case) / step - 1)
    return f"{_interval(predicted, 1e3):>24}{measured}{error:>+7.1f}%{_within(predicted, step / 1e3):>8}{timed}"


def _stall(case: Case) -> str:
    if case.predicted is None or not case.setting.shares:
        return f"{'-':>24}{'-':>10}{'':>16}"
    predicted, stall = case.predicted["stall_ratio"], case.outcome.stall
    error = 100 * (predicted["value"] - stall)
    return f"{_interval(predicted, 100):>24}{100 * stall:>10.1f}{error:>+8.1f}{_within(predicted, stall):>8}"


def _memory(case: Case) -> str:
    predicted = "-" if case.predicted is None else f"{case.predicted['memory_bytes'] / 2**20:.0f}"
    return f"{predicted:>12}{case.outcome.memory_mib or '-':>6}"


def _interval(interval: dict[str, float], factor: float) -> str:
    value, low, high = (f"{factor * interval[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _inside(interval: dict[str, float], value: float) -> bool:
    return interval["low"] <= value <= interval["high"]


def _within(interval: dict[str, float], value: float) -> str:
    return "within" if _inside(interval, value) else "-"


def _spread(values: Sequence[float], unit: str) -> str:
    return f"{statistics.median(values):.1f} {unit} [{min(values):.1f}, {max(values):.1f}]"


def main() -> None:
    """Measure, predict and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--max-stall", default="2%", help="what the recommended settings may stall (default 2%%)")
    parser.add_argument("--keep", type=Path, help="new folder for the profile, the recordings and the ranks' logs")
    arguments = parser.parse_args()
    model = TinyLlama(layers=arguments.layers, hidden=arguments.hidden)
    print(f"$ {' '.join(['python -m benchmarks.plan_vllm', *sys.argv[1:]])}")
    cpu = f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    layer_bytes = 2 * arguments.hidden**2
    print(
        f"{cpu}; two ranks of vLLM on gloo; random Llama of {arguments.layers} layers of width {arguments.hidden}, "
        f"bfloat16, eager, {len(PROMPTS)} requests; {SERIES} has {layer_bytes / 2**20:g} MiB per layer"
    )
    with tempfile.TemporaryDirectory(prefix="swtrace-plan-vllm-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        bench = Bench(folder.absolute(), model)
        profile = bench.probe(layer_bytes)
        found = list(cases(bench, profile, arguments.repetitions, arguments.max_stall))
    print("", *table(found), "", *summary(found), sep="\n")


if __name__ == "__main__":
    main()
