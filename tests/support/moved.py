"""A layer as transports see it, for tests that call them directly."""

from __future__ import annotations

from typing import NamedTuple


class Moved(NamedTuple):
    """A layer of some source."""

    source: int
    position: int = 0
