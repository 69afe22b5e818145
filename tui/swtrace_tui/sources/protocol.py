"""The seam between where facts come from and how they are shown.

Rings of this host (:mod:`~swtrace_tui.sources.rings`) and daemons (:mod:`~swtrace_tui.sources.daemon`)
stand behind it; a recording is one more class with these four methods.
"""

from __future__ import annotations

from typing import Protocol

from swtrace_tui.snapshot import Snapshot


class Source(Protocol):
    """A place that facts come from. It belongs to one thread, and never raises because the place is gone."""

    @property
    def name(self) -> str:
        """What to call it on the screen."""

    def poll(self) -> bool:
        """Take in what is new; True where there is more to take at once. May block for a second or two."""

    def snapshot(self) -> Snapshot:
        """Return everything known now, as frozen data."""

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""
