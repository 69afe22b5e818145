"""A model in vLLM shares a linear through the three original function names, eager and compiled."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import original_names, quantized

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_series_through_the_original_names(folder: Path, eager: bool) -> None:  # noqa: FBT001 (pytest's way)
    """The tokens are those without sharing, every layer is waited for in every step, and every step has its marks."""
    here = folder / f"original-{eager}"
    quantized.QuantizedLlama("plain").save(here / "model")
    program = functools.partial(original_names.generate, str(here / "model"), here / "rendezvous", eager=eager)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(here / "rings")}
    for rank in fork_ranks(program, (), here, ranks=2, environment=environment):
        assert rank["shared"] == rank["control"]
        assert len(set(rank["shared"])) > 1
        assert (rank["unwaited"], rank["aborted"]) == (0, 0)
        assert rank["steps"] >= 8
