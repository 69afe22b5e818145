"""What the daemon says on stderr."""

from __future__ import annotations

import logging

from swtrace.cli.daemon import RepeatFilter


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
