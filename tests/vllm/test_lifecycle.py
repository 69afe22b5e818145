"""How weights are loaded: load formats that a series cannot follow are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


def test_load_formats_that_cannot_share(folder: Path) -> None:
    """Formats with processed weights, or that bypass the layers' loaders, are refused by name."""
    (why,) = fork_ranks(inspections.loads, (), folder)
    assert {"sharded_state", "runai_streamer_sharded", "tensorizer"} <= set(why)
    assert not {"auto", "safetensors", "pt", "dummy", "mistral"} & set(why)
    assert all(f"load format {name} does not load weights one by one" in said for name, said in why.items())
