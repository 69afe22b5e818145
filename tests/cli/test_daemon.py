"""What the daemon says on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon_command import environment
from tests.support.patience import patience
from tests.support.recorded_run import SPANS_PER_STEP, RecordedRun


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """A run of two ranks without records yet."""
    run = RecordedRun(tmp_path / "rings")
    yield run
    run.close()


@pytest.mark.parametrize(
    ("signal", "name", "text"),
    [("TRACES", "SWTRACE_TRACE_SAMPLE", "2"), ("METRICS", "OTEL_METRIC_EXPORT_INTERVAL", "1 min")],
)
def test_unusable_setting_is_a_usage_error(tmp_path: Path, signal: str, name: str, text: str) -> None:
    """An invalid setting of an enabled export is named in one line, and ends the command with exit code 2."""
    command = [sys.executable, "-m", "swtrace", "daemon", "--dir", str(tmp_path), "--listen", "127.0.0.1:0"]
    failed = subprocess.run(
        command,
        env=environment(**{f"OTEL_{signal}_EXPORTER": "console", name: text}),
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith(f"swtrace: {name}='{text}': must be ")
    assert failed.stderr.count("\n") == 1


def test_stdout_is_the_url_and_console_spans_only(run: RecordedRun) -> None:
    """Stdout carries only the URL, and spans if the console exporter is selected."""
    process = subprocess.Popen(
        [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", str(run.directory), "-v"],
        env=environment(OTEL_TRACES_EXPORTER="console"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    run.write(1)
    process.terminate()
    rest, _err = process.communicate(timeout=patience())
    decoder, spans = json.JSONDecoder(), []
    while rest := rest.lstrip():
        span, end = decoder.raw_decode(rest)
        spans.append(span)
        rest = rest[end:]
    assert len(spans) == SPANS_PER_STEP - 2
