"""The ids of traces and spans, and which steps are exported. All are hashes, so daemons on several hosts agree.

The id of a trace is a hash of (run id, step), and of the rank if the step is that of one rank of a pull series. The id
of a span is a hash of (series key, step, rank, kind, layer), so a daemon can link to a span that another host's daemon
exports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from swtrace.ledger.facts import SeriesKey, StepFacts

_BITS = 53
"""Bits of a float's mantissa. With more, the highest position would round to 1, and a share of 1 would miss it."""
_NO_ID, _ONE = bytes(8), bytes(7) + b"\1"


def trace_id(run_id: str, step: int, rank: int | None = None) -> int:
    """Return the id of the trace that holds all spans of one step: 16 bytes, never 0.

    Args:
        run_id: The run.
        step: Number of the step.
        rank: The global rank whose step it is, in a pull series; None for a step that all ranks run together.
    """
    return int.from_bytes(_digest(f"trace\0{_named(run_id, step, rank)}", 16), "big") or 1


def trace_of(step: StepFacts) -> int:
    """Return the id of the trace of a finished step."""
    return trace_id(step.series.run_id, step.step, _rank_of(step))


def _rank_of(step: StepFacts) -> int | None:
    return None if step.only_rank is None else step.only_rank.rank


def _named(run_id: str, step: int, rank: int | None) -> str:
    return f"{run_id}\0{step}" if rank is None else f"{run_id}\0{step}\0{rank}"


def span_ids(series: SeriesKey, step: int, rank: int, kind: str, layers: Iterable[bytes]) -> bytes:
    """Return the concatenated ids of a rank's spans of one kind; ``layers`` are layer numbers as text."""
    run_id, name, start_layer, group_ranks = series
    group = ",".join(map(str, group_ranks))
    begins = f"span\0{run_id}\0{step}\0{rank}\0{kind}\0{name}\0{start_layer}\0{group}\0"
    begun, ids = blake2b(begins.encode(), digest_size=8), []
    for layer in layers:
        text = begun.copy()
        text.update(layer)
        ids.append(text.digest())
    return b"".join(ids if _NO_ID not in ids else [each if each != _NO_ID else _ONE for each in ids])


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode(), digest_size=size).digest()


def position(run_id: str, step: int, rank: int | None = None) -> float:
    """Return the position of this step in [0, 1). It is sampled at every share above this."""
    digest = _digest(f"sample\0{_named(run_id, step, rank)}", 8)
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Keep a share of all steps, and every slow one."""

    share: float = 1.0
    slow_step_ns: int | None = None
    """Keep a step that lasts at least this long on one rank. None: only the share decides."""

    def keeps(self, step: StepFacts) -> bool:
        """Return whether the spans of this step are exported.

        The share depends only on what the id of the trace depends on, so that a trace is either complete or absent.
        Slowness depends on the ranks that this daemon sees: with several hosts, a step that is slow on only one is kept
        only there.
        """
        if position(step.series.run_id, step.step, _rank_of(step)) < self.share:
            return True
        if self.slow_step_ns is None or not step.ended.any():
            return False
        return int(step.duration_ns.max()) >= self.slow_step_ns
