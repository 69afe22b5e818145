"""The daemon's log on stderr: it never blocks the daemon, and no library fills it with repetitions."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPEAT_S = 60.0
WAITING_LINES = 1000
"""Lines that wait while nobody reads stderr. Later ones are lost, and counted."""
WRITTEN_S = 1.0
"""How long the last lines may take at the end."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def logging_to_stderr(*, verbose: bool) -> Iterator[None]:
    """Log warnings, or more, to stderr. At the end, wait a short time for lines that are not written yet."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter(_FORMAT))
    handler = WaitingLines(shown)
    for library in ("opentelemetry", "uvicorn", "asyncio"):
        handler.addFilter(RepeatFilter(library))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        handler.finish(WRITTEN_S)


class WaitingLines(QueueHandler):
    """Passes records to another handler in a thread of its own: a terminal or a log collector may stop reading."""

    def __init__(self, handler: logging.Handler) -> None:
        """Start the thread."""
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(WAITING_LINES)
        super().__init__(self._waiting)
        self.setFormatter(logging.Formatter("%(message)s"))  # the other handler adds the rest
        self._handler = handler
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="swtrace-log", daemon=True)
        self._thread.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Store a record for the thread, or count it as lost."""
        if self._lost and not self._waiting.full():
            record.msg = f"{record.msg} [{self._lost} earlier messages are lost, because nobody read this log]"
            self._lost = 0
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def finish(self, timeout_s: float) -> None:
        """Wait until everything is written, but not for long."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)

    def _write(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._handler.handle(record)


class RepeatFilter(logging.Filter):
    """Logs each message template of a library at most once a minute, with the number of suppressed messages.

    An exporter that cannot reach its collector would otherwise log every attempt, for hours.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Filter only the loggers of ``library``."""
        super().__init__()
        self._library = library
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}
        """By message template: when it was last logged, and how often it was suppressed since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        if record.name != self._library and not record.name.startswith(f"{self._library}."):
            return True
        now, template = self._clock(), str(record.msg)
        logged, suppressed = self._logged.get(template, (-REPEAT_S, 0))
        if now - logged < REPEAT_S:
            self._logged[template] = (logged, suppressed + 1)
            return False
        if suppressed:
            record.msg, record.args = f"{record.getMessage()} [{suppressed} more like this in the last minute]", ()
        self._logged[template] = (now, 0)
        return True
