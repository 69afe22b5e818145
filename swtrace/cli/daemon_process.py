"""The daemon as ``demo`` and ``run`` start it beside their ranks: its URL, and what it said if it died."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from swtrace.cli.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ANY_PORT = "127.0.0.1:0"
_URL = re.compile(r"https?://\S+:\d+")
_KEPT_LINES = 20


class DaemonProcess:
    """A ``swtrace daemon`` over one folder of rings; given a run id, over that run alone."""

    def __init__(
        self,
        directory: Path,
        run_id: str | None = None,
        *,
        listen: str = ANY_PORT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; it serves a moment later, then :attr:`url` is known."""
        self.child = Child.start(
            "swtrace",
            ["daemon", "--listen", listen, *([] if run_id is None else ["--run", run_id])],
            environment={**(environment or {}), "SWTRACE_DIR": str(directory)},
            stderr_too=True,
        )
        self.url: str | None = None
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        """The last lines of its output."""

    def poll(self) -> bool:
        """Take in its output; True at the one call that learns the URL."""
        known = self.url is not None
        for line in self.child.lines():
            self.said.append(line)
            if self.url is None and (found := _URL.search(line)):
                self.url = found[0]
        return not known and self.url is not None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.child.status is None

    def stop(self) -> None:
        """End it; it exports what it has first."""
        self.child.stop()
