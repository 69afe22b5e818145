"""A server whose two engines are data-parallel replicas. It gets Ctrl-C once both are idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from swtrace.trace.directory import ring_paths
from swtrace.trace.ring_reader import RingReader
from tests.support.vllm.server import PATIENCE_S, TOKENS, serving

OPTIONS = ("--tensor-parallel-size", "1", "--data-parallel-size", "2", "--enforce-eager")
REST_S = 2.0
"""If no record was written for this long, no replica is in a step, which takes milliseconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Replicas:
    """A running server, seen from outside."""

    url: str
    log: Path
    rings: Path | None

    def ask(self, replica: int, prompt: Sequence[int], tokens: int = TOKENS) -> tuple[int, ...]:
        """Return the tokens that this replica generates after a prompt."""
        request = {"model": "tiny", "prompt": [*prompt], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(
            f"{self.url}/v1/completions",
            json={**request, "return_token_ids": True},
            headers={"X-data-parallel-rank": str(replica)},
            timeout=PATIENCE_S,
        ).raise_for_status()
        return tuple(answer.json()["choices"][0]["token_ids"])

    def wait_until_at_rest(self) -> None:
        """Wait until neither replica takes a step, so that Ctrl-C finds both at the same step."""
        if self.rings is None:
            return
        deadline = time.monotonic() + PATIENCE_S
        before = self._written()
        while time.monotonic() < deadline:
            time.sleep(REST_S)
            now = self._written()
            if now == before:
                return
            before = now
        pytest.fail(f"the replicas keep taking steps: {before}")

    def _written(self) -> dict[str, int]:
        assert self.rings is not None
        written = {}
        for path in ring_paths(self.rings):
            with RingReader.open(path) as ring:
                written[path.name] = ring.statistics().written
        return written


@dataclass(frozen=True, slots=True)
class Served:
    """How the server ended after Ctrl-C, and what it left behind."""

    status: int
    orphans: list[int]
    log: str


def serve(
    model: Path, folder: Path, environment: dict[str, str], talk: Callable[[Replicas], Result], plain_linears: str = ""
) -> tuple[Result, Served]:
    """Start a server, call ``talk``, and interrupt the server once its replicas are idle."""
    with serving(model, folder, environment, options=OPTIONS, plain_linears=plain_linears) as server:
        rings = environment.get("SWTRACE_DIR")
        replicas = Replicas(str(server._client.base_url), folder / "server.log", Path(rings) if rings else None)
        result = talk(replicas)
        replicas.wait_until_at_rest()
        status = server.interrupt()
        orphans = server.remaining_processes()
    return result, Served(status, orphans, (folder / "server.log").read_text())
