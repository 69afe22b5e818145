"""If a forward raises or a worker dies in an engine with two workers, it ends as in plain vLLM, with the reason."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from swtrace.trace.ring_reader import RingReader
from tests.support.vllm.faults import LAYER, LAYERS, RANKS, SERIES, Outcome, provoke
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]

PATIENCE_S = 20
"""How long vLLM waits for a step in the case that waits for this limit; in others 300 s, the default."""
GRACE_S = 1
"""How long vLLM waits for workers to end before it kills them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An engine after a fault."""

    outcome: Outcome
    log: str
    rings: Path


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Return a model with more layers than there are windows, so that ranks cannot catch up with each other alone."""
    TinyDeepSeek(layers=LAYERS).save(folder / "faults")
    return folder / "faults"


@pytest.fixture(scope="module", params=["all", "answering", pytest.param("silent", marks=pytest.mark.slow), "killed"])
def ended(request: pytest.FixtureRequest, model: Path, folder: Path) -> Ended:
    """Return an engine that had a fault."""
    here = folder / f"fault-{request.param}"
    here.mkdir()
    name = f"fault-{secrets.token_hex(4)}"
    environment = {
        "SWTRACE": "1",
        "SWTRACE_DIR": str(here / "rings"),
        "SWTRACE_SERIES": SERIES,
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(PATIENCE_S if request.param == "silent" else 300),
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": str(GRACE_S),
    }
    try:
        (outcome,) = fork_ranks(provoke, (model, name, request.param), here, environment=environment)
    finally:
        # vLLM's CPU build forgets these, sharing or not.
        for left in Path("/dev/shm").glob(f"{name}-*"):
            left.unlink()
    return Ended(outcome, (here / "rank-0.log").read_text(), here / "rings")


def test_a_fault_ends_the_engine(ended: Ended, request: pytest.FixtureRequest) -> None:
    """The error reaches vLLM's caller: at once if vLLM listens to the rank, otherwise after vLLM's time limit."""
    # On CPUs with AVX-512 vLLM's reduction waits for the dead until vLLM gives up; on others gloo's raises at once.
    lost = f"RuntimeError: Worker failed with error 'series '{SERIES}', rank 0, layer {LAYER}: rank 1 died"
    errors = {
        "all": ("RuntimeError: Worker failed with error 'rank 0 gives up'",),
        "answering": ("RuntimeError: Worker failed with error 'rank 0 gives up'",),
        "silent": ("TimeoutError: RPC call to execute_model timed out",),
        "killed": ("RuntimeError: cancelled", lost),
    }
    fault = request.node.callspec.params["ended"]
    assert ended.outcome.error.startswith(errors[fault])
    for rank in RANKS.get(fault, ()):
        assert f"ValueError: rank {rank} gives up" in ended.log


def test_nobody_is_left(ended: Ended) -> None:
    """No worker keeps running, not even one whose peer has abandoned it in a collective. No ring stays locked."""
    assert ended.outcome.left == ()
    rings = [RingReader.open(path) for path in ended.rings.iterdir()]
    assert sorted((ring.identity.rank, ring.alive()) for ring in rings) == [(0, False), (1, False)]
    for ring in rings:
        ring.close()


@pytest.mark.parametrize("ended", ["killed"], indirect=True)
def test_a_dead_worker_is_named(ended: Ended) -> None:
    """The survivor is blocked in vLLM's own collective, but still names series, layer and the peer that died."""
    said = re.findall(r"series '(\S*)', rank (\d), layer (\d+): rank (\d) died", ended.log)
    assert set(said) == {(SERIES, "0", str(LAYER), "1")}
