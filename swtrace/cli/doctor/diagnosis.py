"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The outcome of a check."""

    GOOD = "good"
    ABSENT = "absent"
    """Missing, but not needed by everyone."""
    DOUBTFUL = "doubtful"
    """Works now, but may fail when it matters."""
    BROKEN = "broken"
    """Something that was requested cannot work."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was checked, the outcome, and how to fix it."""

    subject: str
    state: State
    detail: str
    fix: str = ""
    """How to fix it; empty if there is nothing to do."""
