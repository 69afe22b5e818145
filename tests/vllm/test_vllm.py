"""Without ``SWTRACE=1`` the plugin leaves vLLM as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import Workload, run_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


def test_nothing_happens_without_the_switch(workload: Workload, folder: Path) -> None:
    """Without SWTRACE=1 no function of vLLM is replaced, no runtime is imported, and the config does not change."""
    environment = {"SWTRACE": "off", "SWTRACE_SERIES": "nonsense", "SWTRACE_PREFETCH_STEP": "-1"}
    workload = replace(workload, inspect=inspections.untouched, tokens=1)
    (rank,) = run_ranks(workload, folder, ranks=1, environment=environment)
    assert rank.inspected == {
        "modules": [],
        "additional_config": {},
        "offloader": "NoopOffloader",
        "replaced": [],
        "operators": False,
    }
