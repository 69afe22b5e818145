"""The terminal loads only light modules."""

from __future__ import annotations

from pathlib import Path

from tests.test_layering import EXPORTERS, RUNTIME, loaded

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
