"""What the planner is asked and what it answers, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from swtrace.plan_file import CONFIDENCE, Interval
from swtrace.share import Share

__all__ = ["CONFIDENCE", "Candidate", "Interval", "Prediction"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings under which a linear could be shared."""

    share: Share
    prefetch_step: int
    """Counts shared layers."""
    transport: str
    """``broadcast`` or ``pull``."""
    windows: str
    """``static`` or ``rolling``."""
    ranks: int
    """Size of the group."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a candidate would give."""

    candidate: Candidate
    shared_layers: int
    stack_layers: int
    """Decoder layers of a rank, shared or not."""
    memory_bytes: int
    """What the rank that holds most would hold of this linear: resident layers, layers that it owns, and windows."""
    saved_bytes: int
    """What this saves compared with every layer on every rank; negative if the windows outweigh it."""
    step_ns: Interval | None
    """Mean time of a step, on the rank with the longest; None if :attr:`refusal` says why it cannot be predicted."""
    stall_ratio: Interval | None
    """Stall as a share of step time, on the most stalled rank; None likewise."""
    refusal: str = ""
    """Why there are no figures; empty if there are."""
