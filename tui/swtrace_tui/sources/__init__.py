"""Where facts come from: one :class:`Source` per kind of place, all with the same snapshots."""

from __future__ import annotations

from swtrace_tui.sources.protocol import Source

__all__ = ["Source"]
