"""A model's decoder layers are found, or the refusal says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


def test_lists_of_layers(folder: Path) -> None:
    """A model's own list of layers is recognized by its length and linears; else the model is refused by name."""
    (found,) = fork_ranks(inspections.layer_lists, (), folder)
    two, none = found.pop("two"), found.pop("none")
    assert found == {"one": "Decoder", "a tower before it": "Decoder", "another linear": "Tower"}
    assert two.startswith(
        "Model does not build its decoder layers through vLLM's make_layers, so swtrace looks for one "
    )
    assert "but this model has several (fast, slow); unset SWTRACE" in two
    assert none.startswith(
        "vLLM runs this model through its Transformers backend (Backed), so swtrace looks for one list"
    )
    assert "list of 3 decoder layers, but this model has none; unset SWTRACE" in none
