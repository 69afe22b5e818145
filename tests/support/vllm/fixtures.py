"""Fixtures of all tests that run vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import TinyLlama, Workload
from tests.support.vllm.shared_runs import SERIES


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of models, rendezvous files and the ranks' output."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def workload(folder: Path) -> Workload:
    """Return the control's workload: seven layers, eager, not shared, but with the kernel that sharing uses."""
    TinyLlama(layers=7, hidden=128).save(folder / "seven")
    return Workload(folder / "seven", plain_linears=(SERIES,))
