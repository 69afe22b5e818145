"""A worker of the OpenAI-compatible server is killed while it answers requests. Slow: the server is four processes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import pytest

from swtrace.trace.ring_reader import RingReader
from tests.support.vllm.server import PATIENCE_S, PROMPTS, serving, temporary_folder
from tests.support.vllm.tiny_models import TinyDeepSeek

SERIES = "self_attn.fused_qkv_a_proj"
MODEL = TinyDeepSeek()
TOKENS = 240
"""As many as the server allows after the prompts, so that the requests are far from done when the worker dies."""

pytestmark = [pytest.mark.vllm, pytest.mark.mla, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Lost:
    """What was left after a worker died."""

    streams: list[tuple[int, str]]
    """Of each client: how many tokens came, and the error."""
    orphans: list[int]
    locked: list[int]
    """Ranks whose rings are still locked."""
    log: str


@pytest.fixture(scope="module")
def lost(folder: Path) -> Lost:
    """Return what remained of a server whose second worker was killed while all clients were being answered."""
    here = folder / "server-loss"
    rings = here / "rings"
    MODEL.save(here / "model")
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings), "SWTRACE_SERIES": SERIES}
    listening = Barrier(len(PROMPTS) + 1)
    with (
        temporary_folder() as temporary,
        serving(
            here / "model", here, {**environment, "TMPDIR": str(temporary)}, options=("--enforce-eager",)
        ) as server,
    ):
        victim = _pids(rings)[1]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            streams = [pool.submit(server.listen, prompt, TOKENS, _once(listening)) for prompt in PROMPTS]
            listening.wait(PATIENCE_S)
            os.kill(victim, signal.SIGKILL)
            answers = [stream.result(PATIENCE_S) for stream in streams]
        server.wait_until_over()
        orphans = server.remaining_processes()
    locked = []
    for path in rings.iterdir():
        with RingReader.open(path) as ring:
            if ring.alive():
                locked.append(ring.identity.rank)
    return Lost(answers, orphans, locked, (here / "server.log").read_text())


def _pids(rings: Path) -> dict[int, int]:
    pids = {}
    for path in rings.iterdir():
        with RingReader.open(path) as ring:
            pids[ring.identity.rank] = ring.identity.pid
    return pids


def _once(barrier: Barrier) -> Callable[[], None]:
    """Return a function that waits at the barrier the first time it is called."""
    waits = iter([barrier.wait])

    def call() -> None:
        for wait in waits:
            wait(PATIENCE_S)

    return call


def test_clients_get_an_error(lost: Lost) -> None:
    """Every stream that was open ends with an error, none hangs and none looks complete."""
    assert len(lost.streams) == len(PROMPTS)
    for came, error in lost.streams:
        assert 0 < came < TOKENS
        assert error


def test_nothing_is_left(lost: Lost) -> None:
    """The server ends with all of its processes, and no ring stays locked."""
    assert lost.orphans == []
    assert lost.locked == []


def test_the_log_names_who_died(lost: Lost) -> None:
    """The survivor's error names the series, itself, its layer and the peer."""
    said = re.findall(r"series '(\S+)', rank (\d), layer (\d): .*rank (\d) died", lost.log)
    assert said
    assert {(series, rank, peer) for series, rank, _, peer in said} == {(SERIES, "0", "1")}
    assert {int(layer) for _, _, layer, _ in said} <= {*range(MODEL.layers)}
