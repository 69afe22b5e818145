"""What the planner is asked and what it answers, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.plan_file import CONFIDENCE, Interval
from swtrace.share import NONE, Share

__all__ = ["CONFIDENCE", "UNSHARED", "Candidate", "Grouping", "Interval", "Prediction", "Replayed"]

_Float = npt.NDArray[np.float64]
UNSHARED = Share(NONE)
"""Every layer stays on every rank."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """How vLLM chooses the layers that it offloads to host memory."""

    group_size: int
    """Decoder layers per group."""
    num_in_group: int
    """How many of each group are offloaded: the last ones."""
    params: tuple[str, ...] = ()
    """Parts of the names of these layers' parameters that are offloaded; empty: all parameters."""

    def __str__(self) -> str:
        """Return it in words: ``1 of 4``."""
        return f"{self.num_in_group} of {self.group_size}"

    def share(self, start_layer: int, stack_layers: int) -> Share:
        """Return which of the decoder layers from ``start_layer`` on are offloaded."""
        first = self.group_size - self.num_in_group
        layers = tuple(start_layer + n for n in range(stack_layers) if n % self.group_size >= first)
        return Share.of_selected(layers, stack_layers)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings under which a linear could be shared, or under which vLLM could offload decoder layers."""

    share: Share
    """The layers that are shared or offloaded."""
    prefetch_step: int
    """Counts these layers."""
    transport: str
    """``broadcast``, ``pull`` or ``h2d``."""
    windows: str
    """``static`` or ``rolling``."""
    ranks: int
    """Size of the group."""
    grouping: Grouping | None = None
    """Only of offloaded layers."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """Replayed steps, in ns; ``[step, rank]``."""

    step_ns: _Float
    stall_ns: _Float
    slack_ns: _Float
    waits: int
    """Receivers' waits of all replayed steps."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a candidate would give."""

    candidate: Candidate
    selected_layers: int
    """Decoder layers that are shared or offloaded."""
    stack_layers: int
    """All decoder layers of a rank."""
    memory_bytes: int
    """What the rank that holds most would hold of this linear: resident layers, layers that it owns, and windows
    or buffers."""
    saved_bytes: int
    """What this saves compared with every layer on every rank; negative if the windows outweigh it."""
    step_ns: Interval | None
    """Mean time of a step, on the rank with the longest; None if :attr:`refusal` says why it cannot be predicted."""
    stall_ratio: Interval | None
    """Stall as a share of step time, on the most stalled rank; None likewise."""
    refusal: str = ""
    """Why there are no figures; empty if there are."""
