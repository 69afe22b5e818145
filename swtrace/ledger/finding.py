"""A finding: one sentence of the verdict, with advice and the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Self

HIDDEN_BELOW = 0.05
"""Stall ratio below which the broadcasts count as hidden behind compute."""
STALLED_ABOVE = 0.30
"""Stall ratio above which the broadcasts count as not hidden: sharing costs more time than it is worth."""


class Level(IntEnum):
    """Severity of a finding, in ascending order."""

    GOOD = 0
    NOTE = 1
    WARNING = 2
    BAD = 3

    @property
    def word(self) -> str:
        """Name of the level in JSON documents and style sheets."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a series, with advice and the numbers behind it."""

    kind: str
    """Stable name for scripts: ``hidden``, ``straggler``, ``channel_bound``, ..."""
    level: Level
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    rank: int | None = None
    """Global rank, if the sentence is about one."""
    layer: int | None = None
    advice: str = ""
    """What to do, in one or two sentences; empty if there is nothing to do."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values. Numbers named ``*_ns`` are in nanoseconds."""
        numbers = {name: float(value) for name, value in self.numbers.items()}
        return {**asdict(self), "level": self.level.word, "numbers": numbers}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the finding that :meth:`to_json` was called on."""
        return cls(**{**document, "level": Level[document["level"].upper()]})
