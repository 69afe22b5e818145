"""Try every command of an installed swtrace, in an environment without torch: ``make package``.

Run by that environment's Python, with ``-P``, so that no module comes from this checkout but the writer of the rings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SWTRACE = str(Path(sys.executable).with_name("swtrace"))
LIMIT_S = 120


def main() -> int:
    """Try them; return 1 at the first that does not do what it must."""
    assert find_spec("torch") is None, "torch is installed here, which proves nothing"
    spec = find_spec("swtrace")
    assert spec is not None
    assert ROOT not in Path(str(spec.origin)).parents or "site-packages" in str(spec.origin), spec.origin
    commands = _commands()
    with tempfile.TemporaryDirectory() as folder:
        tried = _try_all(Path(folder))
    untried = commands - tried
    assert not untried, f"commands that nobody tried: {sorted(untried)}"
    print(f"{len(commands)} commands of the installed package work without torch")
    return 0


def _commands() -> set[str]:
    from swtrace.cli.commands import app

    names = {command.name or "" for command in app.registered_commands} | {
        str(group.name) for group in app.registered_groups
    }
    for name in sorted(names):
        _run(name, "--help", needs="Show this message and exit.")
    return names


def _try_all(folder: Path) -> set[str]:
    rings, recording = folder / "rings", folder / "run.swtrace"
    tried = {"daemon"}
    with _ranks(rings):
        with _daemon(rings) as url:
            _scrape_a_step(url)
        for needs, *arguments in (
            ("rank", "top", "--once", "--wait", "30", "--dir", str(rings)),
            ("looked at", "diagnose", "--dir", str(rings)),
            ("", "record", "--dir", str(rings), "--duration", "2", "-o", str(recording)),
        ):
            tried.add(arguments[0])
            _run(*arguments, needs=needs, codes=(0, 5, 6) if arguments[0] == "diagnose" else (0,))
    for needs, *arguments in (
        ("stall", "stats", str(recording)),
        ("step", "diff", str(recording), str(recording)),
        ("", "export", "-f", "csv", "-o", str(folder / "waits.csv"), str(recording)),
        ("", "export", "-f", "perfetto", "-o", str(folder / "trace.json"), str(recording)),
        ("", "report", "-o", str(folder / "page.html"), str(recording)),
        ("step", "plan", "--html", str(folder / "plan.html"), str(recording)),
        ("", "dashboards", "export", str(folder / "dashboards")),
        ("swtrace", "doctor"),
        ("", "run", "--no-daemon", "--", "true"),
        ("Removed", "clean", "--dir", str(rings)),
    ):
        tried.add(arguments[0])
        _run(*arguments, needs=needs, codes=(0, 1) if arguments[0] in {"doctor", "plan", "run"} else (0,))
    for made in ("waits.csv", "trace.json", "page.html", "dashboards"):
        assert (folder / made).exists(), made
    for needs, command in (("torch", "demo"), ("torch", "probe"), ("vllm", "demo-vllm"), ("terminal", "replay")):
        tried.add(command)
        arguments = [str(recording)] if command == "replay" else []
        _run(command, *arguments, needs=needs, codes=(1, 2))
    return tried


def _scrape_a_step(url: str) -> None:
    """Wait until the daemon's metrics count a step."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310 - our own daemon's
            if b"swtrace_steps_total{" in answer.read():
                return
        time.sleep(0.2)
    raise SystemExit(f"the daemon's metrics count no step after {LIMIT_S} s")


def _run(*arguments: str, needs: str = "", codes: tuple[int, ...] = (0,)) -> None:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        [SWTRACE, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    said = done.stdout + done.stderr
    good = done.returncode in codes and needs.lower() in said.lower() and "Traceback" not in said
    print(f"{'ok  ' if good else 'FAIL'} swtrace {' '.join(arguments)}")
    if not good:
        raise SystemExit(f"exit code {done.returncode}, {needs!r} expected in:\n{said}")


@contextmanager
def _ranks(rings: Path) -> Iterator[None]:
    """Write rings meanwhile, as two ranks would."""
    writer = ROOT / "tests" / "support" / "simulated_rings.py"
    command = [sys.executable, str(writer), str(rings), "--ranks", "2", "--layers", "6", "--rate", "20"]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def _daemon(rings: Path) -> Iterator[str]:
    """Run a daemon; yield its URL once it has seen a rank."""
    command = [SWTRACE, "daemon", "--json", "--listen", "127.0.0.1:0", "--dir", str(rings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            out: IO[str] | None = process.stdout
            assert out is not None
            yield json.loads(out.readline())["url"]
        finally:
            process.terminate()
    print("ok   swtrace daemon")


if __name__ == "__main__":
    sys.exit(main())
