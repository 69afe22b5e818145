"""One sentence of the verdict, what to do about it, and the numbers that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Self

HIDDEN_BELOW = 0.05
"""Stall ratio under which the broadcasts count as hidden behind compute."""
STALLED_ABOVE = 0.30
"""Stall ratio above which sharing costs more time than anyone would pay."""


class Level(IntEnum):
    """How much a finding matters, worst last."""

    GOOD = 0
    NOTE = 1
    WARNING = 2
    BAD = 3

    @property
    def word(self) -> str:
        """The level as JSON documents and style sheets name it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, what to do about it, and what it was made of."""

    kind: str
    """A stable name for scripts: ``hidden``, ``straggler``, ``channel_bound``, ..."""
    level: Level
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    rank: int | None = None
    """Global rank, where the sentence is about one."""
    layer: int | None = None
    advice: str = ""
    """What to do, in a sentence or two; empty where there is nothing to do."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``*_ns`` among the numbers are in nanoseconds."""
        numbers = {name: float(value) for name, value in self.numbers.items()}
        return {**asdict(self), "level": self.level.word, "numbers": numbers}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` was called on."""
        return cls(**{**document, "level": Level[document["level"].upper()]})
