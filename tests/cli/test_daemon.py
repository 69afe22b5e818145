"""What the daemon says on stderr."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.cli.daemon import RepeatFilter
from tests.support.daemon_command import environment
from tests.support.patience import patience
from tests.support.recorded_run import SPANS_PER_STEP, RecordedRun


def record(name: str, message: str, *arguments: object) -> logging.LogRecord:
    """Return a warning as a library's logger makes it."""
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, arguments, None)


def test_a_library_repeats_itself_once_a_minute() -> None:
    """A message that a library repeats is said once a minute, with how many were held back."""
    now = 100.0
    repeat_filter = RepeatFilter("opentelemetry", clock=lambda: now)
    assert repeat_filter.filter(record("opentelemetry.exporter", "no answer in %d s", 1))
    assert not repeat_filter.filter(record("opentelemetry.exporter", "no answer in %d s", 2))
    assert not repeat_filter.filter(record("opentelemetry.exporter", "no answer in %d s", 3))
    assert repeat_filter.filter(record("opentelemetry.exporter", "another one"))
    now = 161.0
    again = record("opentelemetry.exporter", "no answer in %d s", 4)
    assert repeat_filter.filter(again)
    assert again.getMessage() == "no answer in 4 s [2 more like this in the last minute]"


def test_everybody_else_is_always_heard() -> None:
    """Messages of other loggers pass, however often they come."""
    repeat_filter = RepeatFilter("opentelemetry")
    assert all(
        repeat_filter.filter(record(name, "again")) for name in ("swtrace", "opentelemetry_other") for _ in range(3)
    )


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
