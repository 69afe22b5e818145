"""vLLM's own prefetch offloader on a real GPU, watched: real copies from pinned memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.replicas import run_replicas
from tests.support.vllm.offloader_sources import offloader_sources
from tests.support.vllm.offloading import CUDA, Shape, compare


@pytest.fixture
def sources() -> str:
    """Return the folder of vLLM's sources; empty if vLLM is installed."""
    try:
        return str(offloader_sources() or "")
    except LookupError as problem:
        pytest.fail(str(problem))


@pytest.mark.parametrize("shape", [Shape(2, 1, 1), Shape(3, 2, 2), Shape(2, 1, 3)])
def test_records_hold_what_a_device_cannot_break(
    tmp_path: Path, device: torch.device, sources: str, shape: Shape
) -> None:
    """Order of instants, stalls, weights, bytes and vLLM's calls are right; no claim is about how long it takes."""
    del device
    (found,) = run_replicas(1, compare, CUDA, str(tmp_path), sources, shape)
    assert found.broken() == []
