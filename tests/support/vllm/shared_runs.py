"""A shared run of real vLLM next to the daemon, and the results of both."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from swtrace.cli.child import DaemonProcess
from swtrace.cli.vllm_ranks import RankResult, TinyLlama, Workload, run_ranks

SERIES = "self_attn.o_proj"
PATIENCE_S = 300.0

Result = TypeVar("Result")
Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one shared run: from vLLM, the daemon and a control."""

    model: TinyLlama
    prefetch_step: int
    layers: tuple[int, ...]
    """Those that are shared."""
    steps: int
    """The steps that the workload takes on each rank."""
    control: tuple[RankResult, ...]
    ranks: tuple[RankResult, ...]
    samples: Samples
    """The daemon's ``/metrics`` after the ranks had ended."""

    @property
    def layer_bytes(self) -> int:
        """Return the size of one shared weight."""
        return self.model.hidden * self.model.hidden * 2

    def by_rank(self, name: str, **labels: str) -> dict[int, float]:
        """Return a metric by rank, summed over all labels but those given."""
        return by_rank(self.samples, name, **labels)


def share(
    model: TinyLlama,
    workload: Workload,
    control: tuple[RankResult, ...],
    folder: Path,
    *,
    k: int,
    layers: Sequence[int],
    steps: int,
) -> Run:
    """Run ``workload`` with ``SWTRACE=1`` next to a daemon.

    If k is above 1, the environment has another one, and the ranks are timed at the start.
    """
    further = {"SWTRACE_PREFETCH_STEP": "0", "SWTRACE_PROBE": str(folder / "profile.json")} if k > 1 else {}
    ranks, samples = watch(
        folder, steps, lambda environment: run_ranks(workload, folder, environment=environment), **further
    )
    return Run(model, k, tuple(layers), steps, control, ranks, samples)


def watch(
    folder: Path, steps: int, run: Callable[[dict[str, str]], Result], ranks: int = 2, /, **settings: str
) -> tuple[Result, Samples]:
    """Call ``run`` with an environment that shares, next to a daemon. Return its result and the daemon's metrics.

    ``steps`` is the minimum that each rank takes in each series.
    """
    rings = folder / "rings"
    rings.mkdir(mode=0o700, parents=True)
    daemon = DaemonProcess(rings)
    try:
        while not daemon.poll():  # it counts ranks that start after it
            assert daemon.alive, list(daemon.said)
            time.sleep(0.1)
        result = run({"SWTRACE": "1", "SWTRACE_DIR": str(rings), **settings})
        samples = _scrape(daemon, lambda samples: _stepped(samples, ranks=ranks, steps=steps))
    finally:
        daemon.close()
    return result, samples


def artifact_keys(log: Path) -> set[str]:
    """Return the keys, from the log, under which a rank saved or loaded compiled code, or tried to."""
    return set(re.findall(r"/torch_aot_compile/(\w+)/rank_0_0", (log / "rank-0.log").read_text()))


def warnings(log: str) -> list[str]:
    """Return swtrace's warnings in a vLLM log. Folder names in other lines do not match."""
    return re.findall(r"WARNING [^\]\n]*\] (swtrace .*)", log)


def by_rank(samples: Samples, name: str, **labels: str) -> dict[int, float]:
    """Return a metric by rank, summed over all labels but those given."""
    sums: dict[int, float] = {}
    for sample_labels, value in samples.get(name, []):
        if labels.items() <= sample_labels.items():
            rank = int(sample_labels["rank"])
            sums[rank] = sums.get(rank, 0.0) + value
    return sums


def refusals(rings: Path, *, ranks: int) -> dict[int, dict[str, str]]:
    """Return the refusals that a daemon reports for these rings, with their reasons, by rank."""
    daemon = DaemonProcess(rings)
    name = "swtrace_series_refused_info"
    try:
        samples = _scrape(daemon, lambda samples: len({labels["rank"] for labels, _ in samples.get(name, [])}) == ranks)
    finally:
        daemon.close()
    found: dict[int, dict[str, str]] = {}
    for labels, value in samples[name]:
        assert value == 1
        found.setdefault(int(labels["rank"]), {})[labels["series"]] = labels["reason"]
    return found


def _scrape(daemon: DaemonProcess, done: Callable[[Samples], bool]) -> Samples:
    """Return the daemon's metrics once it has read everything."""
    deadline = time.monotonic() + PATIENCE_S
    samples: Samples = {}
    while time.monotonic() < deadline:
        daemon.poll()
        if daemon.url is not None:
            samples = _parse(httpx.get(f"{daemon.url}/metrics").raise_for_status().text)
            if done(samples):
                return samples
        time.sleep(0.1)
    pytest.fail(f"the daemon has not read everything: {samples} {list(daemon.said)}")


def _stepped(samples: Samples, *, ranks: int, steps: int) -> bool:
    """Return whether all ranks have ended after at least ``steps`` steps, and everything is read."""
    read = [value for _, value in samples.get("swtrace_steps_total", [])]
    unread = sum(value for _, value in samples.get("swtrace_ring_pending_records", []))
    up = sum(value for _, value in samples.get("swtrace_rank_up", []))
    return len(by_rank(samples, "swtrace_steps_total")) == ranks and min(read) >= steps and unread == up == 0


def _parse(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples
