"""An engine with two worker processes refuses calls that a shared model does not support."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.faults import SERIES, refused_calls
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]


def test_a_refused_call_leaves_the_engine_as_it_was(folder: Path) -> None:
    """The error gives the reason. The scheduler is not paused, later calls get their own answers, tokens stay equal."""
    TinyDeepSeek().save(folder / "lifecycle")
    name = f"lifecycle-{secrets.token_hex(4)}"
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "rings-lifecycle"), "SWTRACE_SERIES": SERIES}
    try:
        (seen,) = fork_ranks(refused_calls, (folder / "lifecycle", name), folder, environment=environment)
    finally:
        # vLLM's CPU build forgets these, sharing or not.
        for left in Path("/dev/shm").glob(f"{name}-*"):
            left.unlink()
    reason = f"the weights of {SERIES} are shared between ranks"
    calls = ("sleep", "save_sharded_state", "update_weights")
    assert [said.partition(", so")[0] for said in seen["said"]] == [f"RefusedError: {call}: {reason}" for call in calls]
    assert seen["paused"] == [False, False, False]
    assert seen["ranks"] == [0, 1]
    assert seen["same"]
