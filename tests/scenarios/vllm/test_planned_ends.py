"""A server that is stopped on purpose leaves closed rings, and none of its ranks counts as dead."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.patience import patience
from tests.support.vllm.faults import LAYERS, SERIES
from tests.support.vllm.planned_ends import end
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Return a model with a linear that tensor parallel ranks can share."""
    TinyDeepSeek(layers=LAYERS).save(folder / "ends")
    return folder / "ends"


@pytest.mark.parametrize(
    "how",
    [
        "shutdown",
        "killed while closing",
        "all terminated amid a step",
        "engine killed",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("deleted", "exit", "workers terminated", "workers terminated amid a step", "all terminated")
        ),
    ],
)
def test_a_planned_end_is_no_death(how: str, model: Path, folder: Path) -> None:
    """However vLLM ends its workers, no rank counts as died, and each marks its ring as closed if Python lets it.

    Amid a step, a worker may be in a collective that no signal interrupts. vLLM kills it once its time is over.
    """
    here = folder / f"end-{how.replace(' ', '-')}"
    here.mkdir()
    name = f"end-{secrets.token_hex(4)}"
    environment = {
        "SWTRACE": "1",
        "SWTRACE_DIR": str(here / "rings"),
        "SWTRACE_SERIES": SERIES,
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1" if how == "killed while closing" else "5",
    }
    try:
        ((states, died),) = fork_ranks(end, (model, name, how), here, environment=environment, timeout_s=patience(240))
    finally:
        # vLLM's CPU build forgets these, sharing or not.
        for left in Path("/dev/shm").glob(f"{name}-*"):
            left.unlink()
    assert not died
    assert set(states) == {0, 1}
    assert "closed" in states.values()
    assert set(states.values()) == {"closed"} or how.endswith("amid a step")
