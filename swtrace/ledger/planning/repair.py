"""What a repair would save: the recent steps, replayed without what it takes away."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Part(StrEnum):
    """What a repair takes away."""

    COMPUTE = "compute"
    """These ranks compute like the others' median, in each step."""
    DELAY = "delay"
    """These ranks never wait for a core."""
    ENTRY = "entry"
    """These ranks enter each step with the others."""
    LINK = "link"
    """Transfers to these ranks take what those to the others take."""
    SOURCE = "source"
    """Transfers from these ranks take what those from the others take."""
    CHANNEL = "channel"
    """Transfers take no time: the most that a faster transport can give."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What is repaired."""

    part: Part
    ranks: tuple[int, ...] = ()
    """Group ranks; all if empty."""


@dataclass(frozen=True, slots=True)
class Saving:
    """A share of step time, with a 90 % interval."""

    share: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)
