"""Runs of real vLLM, made once and looked at by many tests."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import inspections
import pytest
from prometheus_client.parser import text_string_to_metric_families

from swtrace.cli.daemon_process import DaemonProcess
from swtrace.cli.vllm_ranks import RankResult, TinyLlama, Workload, run_ranks

SERIES = "self_attn.o_proj"
PATIENCE_S = 60.0

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Run:
    """One shared run, as vLLM, the daemon and a control saw it."""

    model: TinyLlama
    prefetch_step: int
    steps: int
    """That the workload takes on each rank."""
    control: tuple[RankResult, ...]
    ranks: tuple[RankResult, ...]
    samples: Samples
    """Of the daemon's ``/metrics`` when the ranks had ended."""

    @property
    def layer_bytes(self) -> int:
        """Return the size of one shared weight."""
        return self.model.hidden * self.model.hidden * 2

    def by_rank(self, name: str, **labels: str) -> dict[int, float]:
        """Return a metric by rank, summed over all labels but those given."""
        sums: dict[int, float] = {}
        for sample_labels, value in self.samples.get(name, []):
            if labels.items() <= sample_labels.items():
                rank = int(sample_labels["rank"])
                sums[rank] = sums.get(rank, 0.0) + value
        return sums


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of models, rendezvous files and the ranks' output."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def workload(folder: Path) -> Workload:
    """Return the control's workload on seven layers, eager: no sharing, but the kernel that sharing uses."""
    TinyLlama(layers=7, hidden=128).save(folder / "seven")
    return Workload(folder / "seven", plain_linears=(SERIES,))


@pytest.fixture(scope="session")
def control(workload: Workload, folder: Path) -> tuple[RankResult, ...]:
    """Return the tokens without swtrace, eager."""
    return run_ranks(workload, folder)


@pytest.fixture(scope="session")
def eager(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> Run:
    """Share with prefetch step 2, set by additional_config over another one in the environment."""
    config = {"swtrace": {"prefetch_step": 2}}
    shared = replace(workload, plain_linears=(), additional_config=config, inspect=inspections.shared)
    # One prefill of all prompts, and a decode for every token but the first.
    return _run(TinyLlama(layers=7, hidden=128), shared, control, folder / "eager", k=2, steps=workload.tokens)


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Run:
    """Share in a compiled model of three layers, as few as a prefetch step of 1 allows: compiling takes its time."""
    model = TinyLlama(layers=3, hidden=128)
    model.save(folder / "three")
    plain = Workload(folder / "three", eager=False, plain_linears=(SERIES,))
    shared = replace(plain, plain_linears=(), inspect=inspections.shared)
    # Compiling runs the model once more.
    return _run(model, shared, run_ranks(plain, folder), folder / "compiled", k=1, steps=plain.tokens + 1)


def _run(
    model: TinyLlama, workload: Workload, control: tuple[RankResult, ...], folder: Path, *, k: int, steps: int
) -> Run:
    rings = folder / "rings"
    rings.mkdir(mode=0o700, parents=True)
    daemon = DaemonProcess(rings)
    try:
        environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings), **({"SWTRACE_PREFETCH_STEP": "0"} if k > 1 else {})}
        ranks = run_ranks(workload, folder, environment=environment)
        samples = _scrape(daemon, ranks=len(ranks), steps=steps)
    finally:
        daemon.stop()
    return Run(model, k, steps, control, ranks, samples)


def _scrape(daemon: DaemonProcess, *, ranks: int, steps: int) -> Samples:
    """Return the daemon's metrics once it has read everything, or as they are when patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    samples: Samples = {}
    while time.monotonic() < deadline:
        daemon.poll()
        if daemon.url is not None:
            samples = _parse(httpx.get(f"{daemon.url}/metrics").raise_for_status().text)
            read = [value for _, value in samples.get("swtrace_steps_total", [])]
            unread = sum(value for _, value in samples.get("swtrace_ring_pending_records", []))
            up = sum(value for _, value in samples.get("swtrace_rank_up", []))
            if len(read) == ranks and min(read) >= steps and unread == up == 0:
                return samples
        time.sleep(0.1)
    pytest.fail(f"the daemon has not read everything: {samples} {list(daemon.said)}")


def _parse(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
