"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a thing was found."""

    GOOD = "good"
    ABSENT = "absent"
    """Not there, and not needed by everyone."""
    DOUBTFUL = "doubtful"
    """Works now, and may not when it matters."""
    BROKEN = "broken"
    """Something that was asked for cannot work."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was looked at, how it was found, and how to mend it."""

    subject: str
    state: State
    detail: str
    mend: str = ""
    """What to do; empty where nothing is to be done."""
