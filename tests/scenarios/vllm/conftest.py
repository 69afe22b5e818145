"""Runs of real vLLM, made once and looked at by many tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import RankResult, TinyLlama, Workload, run_ranks
from tests.support.vllm import inspections
from tests.support.vllm.vllm_runs import SERIES, Run, share

BACKSTOP_S = 7200
"""Upper limit for a test that hangs where no other limit applies."""


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
    return share(TinyLlama(layers=7, hidden=128), shared, control, folder / "eager", k=2, steps=workload.tokens)


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Run:
    """Share in a compiled model of three layers, as few as a prefetch step of 1 allows: compiling takes its time."""
    model = TinyLlama(layers=3, hidden=128)
    model.save(folder / "three")
    plain = Workload(folder / "three", eager=False, plain_linears=(SERIES,))
    shared = replace(plain, plain_linears=(), inspect=inspections.shared)
    log = folder / "compiled-control"
    log.mkdir()
    # Compiling runs the model once more.
    return share(model, shared, run_ranks(plain, log), folder / "compiled", k=1, steps=plain.tokens + 1)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mark every test of this folder. What it waits for has limits of its own, which go by what the processes do."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(BACKSTOP_S))
