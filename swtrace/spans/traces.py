"""Which trace a step is, and whether it is exported: hashes, so that daemons of several hosts agree without talking.

The id of a trace is a hash of (run id, step), that of a span one of (run id, step, rank, kind, series, layer): a
daemon can link to a span that another host's daemon exports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from swtrace.ledger.facts import StepFacts

_BITS = 53
"""A float carries this many: more, and the highest position would round to 1 and miss a share of 1."""
_NO_ID, _ONE = bytes(8), bytes(7) + b"\1"


def trace_id(run_id: str, step: int) -> int:
    """Return the id of the trace that holds all spans of one step of a run: 16 bytes, never 0."""
    return int.from_bytes(_digest(f"trace\0{run_id}\0{step}", 16), "big") or 1


def span_ids(run_id: str, step: int, rank: int, kind: str, *, series: str, layers: Iterable[bytes]) -> bytes:
    """Return the ids of a rank's spans of one kind, one after the other; ``layers`` are the numbers as text."""
    begun, ids = blake2b(f"span\0{run_id}\0{step}\0{rank}\0{kind}\0{series}\0".encode(), digest_size=8), []
    for layer in layers:
        text = begun.copy()
        text.update(layer)
        ids.append(text.digest())
    return b"".join(ids if _NO_ID not in ids else [each if each != _NO_ID else _ONE for each in ids])


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode(), digest_size=size).digest()


def position(run_id: str, step: int) -> float:
    """Return where in [0, 1) this step falls: sampled at every share above it."""
    digest = _digest(f"sample\0{run_id}\0{step}", 8)
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
