"""Which steps have their spans exported: the same ones on every rank and every host, without talking."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from swtrace.ledger.facts import StepFacts

_BITS = 53
"""A float carries this many: more, and the highest position would round to 1 and miss a share of 1."""


def position(run_id: str, step: int) -> float:
    """Return where in [0, 1) this step falls: sampled at every share above it."""
    digest = blake2b(f"sample\0{run_id}\0{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Keep a share of all steps, and every slow one."""

    share: float = 1.0
    slow_step_ns: int | None = None
    """A step that lasts at least this long on one rank is kept; None: only the share decides."""

    def keeps(self, step: StepFacts) -> bool:
        """Tell whether the spans of this step are exported.

        The share is decided by (run id, step) alone, so that a trace is whole or absent. Slowness is
        decided by the ranks that this daemon sees: on several hosts a step slow on one of them alone is kept there.
        """
        if position(step.series.run_id, step.step) < self.share:
            return True
        if self.slow_step_ns is None or not step.ended.any():
            return False
        return int(step.duration_ns.max()) >= self.slow_step_ns
