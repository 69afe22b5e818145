"""Log lines of libraries that repeat themselves, and of a daemon whose stderr nobody reads."""

from __future__ import annotations

import logging
import threading

from swtrace.cli.logs import WAITING_LINES, RepeatFilter, WaitingLines
from tests.support.patience import eventually


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


class Stuck(logging.Handler):
    """A handler that blocks until it may go on, as a write to a full pipe does."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, once it may."""
        self.go.wait()
        self.lines.append(record.getMessage())


def test_a_log_that_nobody_reads_blocks_nobody_and_loses_nothing_silently() -> None:
    """Lines wait without blocking their writer. Those that find no room are counted, which the next line says."""
    stuck = Stuck()
    lines = WaitingLines(stuck)
    for number in range(WAITING_LINES + 50):
        lines.handle(record("swtrace", "line %d", number))
    lines.finish(0.01)
    stuck.go.set()
    eventually(lambda: len(stuck.lines) > WAITING_LINES // 2, "the lines to be written")
    lines.handle(record("swtrace", "the last one"))
    lines.finish(60.0)
    *others, last = stuck.lines
    assert others == [f"line {number}" for number in range(len(others))]
    assert last.startswith("the last one [")
    assert f"[{WAITING_LINES + 50 - len(others)} earlier messages are lost" in last
