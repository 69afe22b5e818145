"""``swtrace daemon`` as a separate process, as users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.patience import patience

ROOT = Path(__file__).parents[2]
LIMITS = httpx.Limits(keepalive_expiry=1.0)
"""A client closes an idle connection well before the server does after five seconds. Otherwise a request of a slow
process can meet a connection that is just being closed."""


def environment(**changes: str) -> dict[str, str]:
    """Return the environment without settings of swtrace and OpenTelemetry, plus the given ones."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("SWTRACE", "OTEL_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


@dataclass(frozen=True)
class DaemonCommand:
    """A running daemon, and a client of it."""

    process: subprocess.Popen[str]
    client: httpx.Client

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of this name with at least these labels. An empty label is an absent one."""
        wanted = [f'{label}="{text}"' for label, text in labels.items() if text]
        absent = [f'{label}="' for label, text in labels.items() if not text]
        lines = self.client.get("/metrics").text.splitlines()
        samples = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(
            float(line.rpartition(" ")[2])
            for line in samples
            if all(label in line for label in wanted) and not any(label in line for label in absent)
        )

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send the signal, wait for the daemon to end, and return its stderr without the start-up line.

        An export that fails at once may be logged before that line.
        """
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=patience())
        return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("swtrace "))


def served_url(process: subprocess.Popen[str]) -> str:
    """Wait for the start-up line of a daemon with ``--json``, and return the URL in it."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=patience())[1]
    return str(json.loads(line)["url"])


@contextmanager
def connected(process: subprocess.Popen[str]) -> Iterator[httpx.Client]:
    """Wait until a daemon with ``--json`` serves, and return a client of it."""
    with httpx.Client(base_url=served_url(process), timeout=patience(), limits=LIMITS) as client:
        yield client


@contextmanager
def daemon(directory: Path | None, port: int = 0, /, **settings: str) -> Iterator[DaemonCommand]:
    """Run a daemon over a folder of rings, on a free port unless one is given. Kill it at the end if it still runs.

    Without a folder, the settings say what it watches.
    """
    command = [sys.executable, "-m", "swtrace", "daemon", "--listen", f"127.0.0.1:{port}", "--json"]
    process = subprocess.Popen(
        command if directory is None else [*command, "--dir", str(directory)],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with connected(process) as client:
            yield DaemonCommand(process, client)
    finally:
        process.kill()
        process.communicate(timeout=patience())
