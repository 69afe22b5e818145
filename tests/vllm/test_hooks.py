"""Modules that read a linear's weight outside of its forward are found before anything is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


def test_linears_that_are_absorbed_after_loading(folder: Path) -> None:
    """A linear that an attention absorbs after loading, as MLA does kv_b_proj, is found; its neighbours are not."""
    assert fork_ranks(inspections.readers, (), folder) == (("attention (Attention)", ""),)
