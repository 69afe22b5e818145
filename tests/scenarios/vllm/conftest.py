"""Runs of real vLLM, each made once and used by many tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankResult, TinyLlama, Workload, run_ranks
from tests.support.vllm import inspections
from tests.support.vllm.fixtures import folder, workload
from tests.support.vllm.shared_runs import SERIES, Run, share

__all__ = ["folder", "workload"]


@pytest.fixture(scope="session")
def control(workload: Workload, folder: Path) -> tuple[RankResult, ...]:
    """Run the workload without swtrace, eager."""
    return run_ranks(workload, folder)


@pytest.fixture(scope="session")
def eager(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> Run:
    """Share every second layer, with prefetch step 2 from additional_config, which overrides the environment."""
    config = {"swtrace": {"prefetch_step": 2, "share": "1/2"}}
    resident = tuple(f"layers.{layer}.{SERIES}" for layer in (1, 3, 5))
    shared = replace(workload, plain_linears=resident, additional_config=config, inspect=inspections.shared)
    # One prefill of all prompts, and a decode for every token but the first.
    model = TinyLlama(layers=7, hidden=128)
    return share(model, shared, control, folder / "eager", k=2, layers=range(0, 7, 2), steps=workload.tokens)


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Run:
    """Share in a compiled model, which has only three layers because compiling is slow. Prefetch step 1 needs three."""
    model = TinyLlama(layers=3, hidden=128)
    model.save(folder / "three")
    plain = Workload(folder / "three", eager=False, plain_linears=(SERIES,))
    shared = replace(plain, plain_linears=(), inspect=inspections.shared)
    log = folder / "compiled-control"
    log.mkdir()
    # Compiling runs the model once more.
    return share(
        model, shared, run_ranks(plain, log), folder / "compiled", k=1, layers=range(3), steps=plain.tokens + 1
    )
