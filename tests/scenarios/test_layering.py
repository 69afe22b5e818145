"""Modules that are loaded by importing a part of swtrace, checked in a fresh interpreter.

The import contracts in pyproject.toml check the same statically. These tests catch imports that happen only at
run time or through a dependency.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon_command import environment
from tests.support.patience import patience

RUNTIME = {"torch", "vllm"}
EXPORTERS = {"opentelemetry", "prometheus_client", "starlette", "uvicorn", "textual"}
READERS = {
    "swtrace.trace.ring_reader",
    "swtrace.trace.records",
    "swtrace.trace.tail",
    "swtrace.ledger",
    "swtrace.observing",
}

_CODE = """
import json, sys
{statement}
print(json.dumps(sorted(name for name in sys.modules)))
"""


def loaded(statement: str) -> set[str]:
    """Return the names of all modules that are loaded after ``statement``, and of their packages."""
    code = _CODE.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(), check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    ["swtrace.trace.ring_reader", "swtrace.trace.tail", "swtrace.ledger", "swtrace.observing", "swtrace.daemon.server"],
)
def test_readers_load_neither_torch_nor_vllm(module: str) -> None:
    """All readers work on a host without torch, and start without importing it."""
    assert not loaded(f"import {module}") & RUNTIME


def test_recorder_loads_no_numpy() -> None:
    """A rank records with only the standard library."""
    assert "numpy" not in loaded("import swtrace.trace.recorder")


def test_series_loads_no_exporter_and_no_reader() -> None:
    """A rank loads neither the web stack nor OpenTelemetry, and no code that reads rings."""
    assert not loaded("import swtrace.series") & (EXPORTERS | READERS)


def test_series_loads_numpy_only_where_torch_does() -> None:
    """The runtime does not load numpy unless torch does."""
    assert ("numpy" in loaded("import swtrace.series")) <= ("numpy" in loaded("import torch.distributed"))


def test_help_loads_nothing_heavy() -> None:
    """``swtrace --help`` is fast because it loads no torch, vLLM, numpy, OpenTelemetry, Prometheus or web stack."""
    statement = "from swtrace.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert end.code == 0"
    assert not loaded(statement) & (RUNTIME | EXPORTERS | READERS | {"numpy"})


def test_plugin_entry_point_loads_nothing_without_swtrace() -> None:
    """Without ``SWTRACE=1``, the plugin that vLLM calls in every process loads neither torch nor our runtime."""
    statement = "import os; os.environ.pop('SWTRACE', None); import swtrace.vllm; swtrace.vllm.register()"
    assert not loaded(statement) & (RUNTIME | EXPORTERS | {"swtrace.series"})


def test_daemon_loads_neither_torch_nor_vllm() -> None:
    """A daemon loads neither torch nor vLLM, exporters included."""
    code = (
        "import sys, swtrace.cli.daemon, swtrace.daemon.server\n"
        "from swtrace.spans.delivery import make_span_sink\n"
        "from swtrace.spans.environment import SpanSettings\n"
        "for protocol in ('grpc', 'http/protobuf'):\n"
        "    make_span_sink(SpanSettings(exporters=('otlp',), protocol=protocol)).close(1)\n"
        "print([name for name in ('torch', 'vllm', 'swtrace.series', 'swtrace.vllm') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


_RUN = """
import asyncio, pathlib
from swtrace_tui.app import TopApp
from swtrace.observing import watch_rings
from swtrace.observing.merged import Merged
from swtrace.recording.remote import DaemonStream

async def run():
    app = TopApp(lambda: watch_rings(pathlib.Path({folder!r})))
    async with app.run_test() as pilot:
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()

asyncio.run(run())
"""


def test_the_running_terminal_loads_neither_torch_nor_vllm_nor_an_exporter(tmp_path: Path) -> None:
    """With every view opened, no torch, no vLLM, no OpenTelemetry and no web stack is loaded."""
    assert not loaded(_RUN.format(folder=str(tmp_path))) & (RUNTIME | EXPORTERS - {"textual"})


def test_help_of_top_loads_no_textual() -> None:
    """``swtrace top --help`` answers without loading the terminal."""
    code = "from swtrace.cli import main\ntry: main(['top', '--help'])\nexcept SystemExit as end: assert end.code == 0"
    assert not loaded(code) & {"textual", "numpy", "swtrace_tui"}
