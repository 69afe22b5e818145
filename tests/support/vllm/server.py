"""vLLM's OpenAI-compatible server as a user starts it: its own processes, HTTP, and Ctrl-C at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from swtrace.cli.vllm_ranks import CPU_ENVIRONMENT, Patience

PATIENCE_S = 300.0
"""Time limit for an answer, and for a start without progress. A start that progresses is not limited."""
PROMPTS = ((186, 398, 163), (170, 296), (317,), (73, 142, 455, 129, 135, 1, 5, 214, 220))
"""Chosen from random prompts so that rounding, which depends on the batch, does not change the next tokens."""
TOKENS = 12


class Server:
    """One running server."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path, headers: dict[str, str]) -> None:
        self._process = process
        self._client = httpx.Client(base_url=url, timeout=PATIENCE_S, headers=headers)
        self._log = log

    def wait_until_up(self) -> None:
        """Wait until the server answers."""
        patience = Patience(PATIENCE_S, lambda: _session(self._process.pid))
        while self._process.poll() is None and not patience.over():
            try:
                if self._client.get("/health").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        pytest.fail(f"the server is not up:\n{self._log.read_text()[-4000:]}")

    def ask(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens that follow a prompt."""
        answer = self._client.post("/v1/completions", json=_request(prompt)).raise_for_status().json()
        return tuple(answer["choices"][0]["token_ids"])

    def ask_for_stream(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens that follow a prompt, received one by one."""
        tokens: list[int] = []
        with self._client.stream("POST", "/v1/completions", json={**_request(prompt), "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    tokens += json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]
        return tuple(tokens)

    def listen(self, prompt: tuple[int, ...], tokens: int, first_came: Callable[[], None]) -> tuple[int, str]:
        """Ask for a stream. Return how many tokens came, and the error that ended it, or an empty string.

        ``first_came`` is called whenever tokens arrive.
        """
        request = {**_request(prompt), "max_tokens": tokens, "stream": True}
        came = 0
        try:
            with self._client.stream("POST", "/v1/completions", json=request) as answer:
                for line in answer.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        return came, chunk["error"]["message"]
                    came += len(chunk["choices"][0]["token_ids"])
                    first_came()
        except httpx.TransportError as error:
            return came, repr(error)
        return came, ""

    def wait_until_over(self) -> None:
        """Wait until the server has ended."""
        self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def interrupt(self) -> int:
        """Press Ctrl-C, as a terminal does, and return the exit status."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(PATIENCE_S)

    def remaining_processes(self) -> list[int]:
        """Return the processes of the server's session that still run after a grace period."""
        deadline = time.monotonic() + 120.0
        while (pids := _session(self._process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return pids


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for a server's ``TMPDIR``. The paths of its sockets would be too long in pytest's folder."""
    with tempfile.TemporaryDirectory(prefix="swtrace-") as name:
        folder = Path(name)
        yield folder
        for rendezvous in folder.glob("vllm_dist_*"):
            # vLLM's CPU build forgets these, sharing or not: 8 MiB of memory per server.
            for left in Path("/dev/shm").glob(f"{rendezvous.name}-*-cpushm_*"):
                left.unlink()


@contextmanager
def serving(
    model: Path,
    folder: Path,
    environment: dict[str, str],
    *,
    plain_linears: str = "",
    options: tuple[str, ...] = (),
    traceparent: str = "",
) -> Iterator[Server]:
    """Start a server on two tensor parallel ranks. Kill its remaining processes at the end.

    With a ``traceparent``, every request comes with this header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", "tiny", "--skip-tokenizer-init"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "bfloat16", "--max-model-len", "256", "--max-num-seqs", "8"),
        *("--tensor-parallel-size", "2", "--kv-cache-memory-bytes", str(64 << 20)),
        *options,
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWTRACE")}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **CPU_ENVIRONMENT,
                **inherited,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                "PYTHONPATH": f"{_plugin(folder)}{os.pathsep}{Path(__file__).parents[3]}",
                "TEST_PLAIN_LINEARS": plain_linears,
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    headers = {"traceparent": traceparent} if traceparent else {}
    server = Server(process, f"http://127.0.0.1:{port}", log, headers)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.close()
        for pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def answers(server: Server) -> dict[str, list[tuple[int, ...]]]:
    """Return the answers to all prompts: one after the other, streamed one after the other, and all at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return {
            "alone": [server.ask(prompt) for prompt in PROMPTS],
            "streamed": [server.ask_for_stream(prompt) for prompt in PROMPTS],
            "at once": [*pool.map(server.ask, PROMPTS), *pool.map(server.ask_for_stream, PROMPTS)],
        }


def _request(prompt: tuple[int, ...]) -> dict[str, object]:
    return {
        "model": "tiny",
        "prompt": list(prompt),
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def _plugin(folder: Path) -> Path:
    """Write the metadata of a vLLM plugin that calls ``cpu_gaps.fill`` in each of the server's processes."""
    site = folder / "plugins"
    metadata = site / "cpu_gaps-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu_gaps\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\ncpu_gaps = tests.support.vllm.cpu_gaps:fill\n")
    return site


def _session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                _, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            state, _, _, session = rest.split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found
