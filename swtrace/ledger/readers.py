"""How many ranks of a pull series read from one owner at the same time, which makes each copy slower.

All ranks of a pull series are on one host and share its clock, so their copies can be compared in time, although their
steps cannot. A count is stated only where it is known what every other rank copied meanwhile: in runs of consecutive
steps whose records are available.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import SeriesFacts, StepFacts

_Int = npt.NDArray[np.int64]
_Intervals = tuple[_Int, _Int]
"""Begins and ends, ascending."""

_NONE = np.zeros(0, np.int64)
_NEVER = np.iinfo(np.int64).min


def readers(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Readers | None:
    """Return the readers of a series in some steps.

    None if its ranks do not pull, or if their copies cannot be compared: some rank records nothing, or has a clock of
    its own.
    """
    if facts.lockstep or facts.clocks > 1 or any(rank.info.untraced for rank in facts.ranks):
        return None
    return Readers(steps, [rank.info.rank_in_group for rank in facts.ranks])


class Readers:
    """The copies of all ranks of a pull series in some steps.

    Args:
        steps: Finished steps of all its ranks, oldest first.
        ranks: Group ranks that copy.
    """

    def __init__(self, steps: Sequence[StepFacts], ranks: Sequence[int]) -> None:
        of_ranks = {rank: [step for step in steps if step.of_rank == rank] for rank in ranks}
        self._known = {rank: _known(rank, of) for rank, of in of_ranks.items()}
        self._copies = {rank: _copies(rank, of) for rank, of in of_ranks.items()}

    def of(self, step: StepFacts) -> _Int:
        """Return ``[position]``: how many ranks read from the layer's owner during the copy, 1 for this rank alone.

        It is 0 where that is unknown.
        """
        rank, count = step.of_rank, np.zeros(len(step.source), np.int64)
        if rank is not None:
            ready = step.ready_ns[rank]
            begin = ready - step.transfer_ns[rank]
            for owner in np.unique(step.source[step.attributed[rank]]).tolist():
                at = step.attributed[rank] & (step.source == owner)
                count[at] = self.during(rank, owner, begin[at], ready[at])
        return count

    def during(self, rank: int, owner: int, begin_ns: _Int, ready_ns: _Int) -> _Int:
        """Return the same for some copies of a group rank from one owner."""
        readers, known = np.ones(len(begin_ns), np.int64), np.ones(len(begin_ns), np.bool_)
        for other in self._known.keys() - {rank}:
            since, until = self._known[other]
            within = np.searchsorted(since, begin_ns, side="right") - 1
            known &= (within >= 0) & (ready_ns <= np.append(until, _NEVER)[within])
            begins, ends = self._copies[other].get(owner, (_NONE, _NONE))
            readers += np.searchsorted(begins, ready_ns) > np.searchsorted(ends, begin_ns, side="right")
        return np.where(known, readers, 0)


def _copies(rank: int, steps: Sequence[StepFacts]) -> dict[int, _Intervals]:
    """Return when a rank copied, by owner. Its copies follow each other."""
    if not steps:
        return {}
    moved = np.concatenate([step.attributed[rank] for step in steps])
    source = np.concatenate([step.source for step in steps])
    ready = np.concatenate([step.ready_ns[rank] for step in steps])
    begin = ready - np.concatenate([step.transfer_ns[rank] for step in steps])
    of_owner = {owner: moved & (source == owner) for owner in np.unique(source).tolist()}
    return {owner: (np.sort(begin[which]), np.sort(ready[which])) for owner, which in of_owner.items()}


def _known(rank: int, steps: Sequence[StepFacts]) -> _Intervals:
    """Return when it is known what a rank copied: from the begin of each run of consecutive steps to its last reach.

    The last reaches of a run issue copies of a step whose records are not available. What happened before a rank's
    first step is unknown, because its predecessor may have copied.
    """
    since: list[int] = []
    until: list[int] = []
    number = -1
    for step in steps:
        info = step.infos[rank]
        if info is None or not step.complete or (step.receiver & ~step.attributed).any():
            continue
        if not since or step.step != number + 1:
            since.append(int(step.begin_ns[rank]))
            until.append(0)
        number, until[-1] = step.step, int(step.wait_end_ns[rank, -1 - info.prefetch_step])
    return np.array(since, np.int64), np.array(until, np.int64)
