"""Tests that need a CUDA GPU. Without one they fail: ``make test`` leaves them out, ``make test-gpu`` means them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU."""
    if not torch.cuda.is_available():
        pytest.fail(f"torch {torch.__version__} finds no CUDA device here")
    return torch.device("cuda", torch.cuda.current_device())
