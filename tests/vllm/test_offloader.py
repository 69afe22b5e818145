"""The range of layers of a series is the one that vLLM builds on this rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.layouts import stages

pytestmark = pytest.mark.vllm


def test_each_stage_has_its_own_first_layer(folder: Path) -> None:
    """With an uneven split a pipeline stage's series begins and ends where vLLM builds the stage's layers."""
    assert fork_ranks(stages, (11, "5,2,4"), folder) == ([(0, 5), (5, 7), (7, 11)],)
