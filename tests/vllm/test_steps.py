"""Each step has the phase that its schedule says."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


def test_phases_of_a_schedule(folder: Path) -> None:
    """A request works on its prompt until it has an output token, and again when it resumes."""
    (phases,) = fork_ranks(inspections.phases, (), folder)
    assert phases == {
        "new": "PREFILL",
        "chunk of a prompt": "PREFILL",
        "resumed": "PREFILL",
        "generating": "DECODE",
        "new and generating": "MIXED",
        "chunk and generating": "MIXED",
        "resumed and generating": "MIXED",
    }
