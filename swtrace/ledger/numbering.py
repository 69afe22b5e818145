"""Step numbers as ranks record them, 32 bits wide, made into numbers that never wrap; wild ones are told apart.

A rank's step numbers go up by one. A record whose number is far from those of its rank, of the group and of the
records beside it was damaged, or written by something else: one such record must not make everybody else's
look old. Where a rank really leaps (it was not read for a while), its next record is beside the first one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.ledger.intake import Ranked

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

NEAR = 64
"""Steps further apart than this are far from one another."""
_WRAP = 1 << 32
_UNKNOWN = -1


class Numbering:
    """The step numbers of one series.

    Args:
        ranks: Size of the group.
    """

    def __init__(self, ranks: int) -> None:
        self._at = np.full(ranks, _UNKNOWN, np.int64)
        """The last step of each rank."""
        self._claimed = np.full(ranks, _UNKNOWN, np.int64)
        """The step of its last record, where that was taken for a wild one."""
        self._newest = _UNKNOWN

    def forget(self, rank: int) -> None:
        """Know nothing of a rank's steps."""
        self._at[rank] = self._claimed[rank] = _UNKNOWN

    def number(self, ranked: Ranked) -> tuple[Ranked, _Bool]:
        """Return the records with their full step numbers, and which of them are wild.

        Args:
            ranked: Each rank's records in the order in which it wrote them, its own side by side.
        """
        raw, rank = ranked.step, ranked.group_rank
        if not len(raw):
            return ranked, np.zeros(0, np.bool_)
        begun = self._newest // _WRAP * _WRAP
        if self._newest != _UNKNOWN and self._newest - NEAR <= raw.min() + begun <= raw.max() + begun <= (
            self._newest + NEAR
        ):  # nearly always: nothing wraps, nobody is far
            step = raw + begun
            self._at[rank] = step  # of each rank the last one stays
            self._claimed[rank] = _UNKNOWN
            self._newest = max(self._newest, int(step.max()))
            return Ranked(ranked.records, rank, ranked.origin, step), np.zeros(len(raw), np.bool_)
        at = self._at[rank]
        reference = np.where(at == _UNKNOWN, self._newest, at)
        known = reference != _UNKNOWN
        step = np.where(known, reference + _apart(raw, reference), raw)
        wild = np.where(known, np.abs(step - reference), step) > NEAR
        if wild.any() and self._newest != _UNKNOWN:
            wild &= np.abs(_apart(raw, np.full_like(raw, self._newest))) > NEAR
        if wild.any():
            wild &= ~(self._beside(raw, rank) | ((self._claimed[rank] != _UNKNOWN) & self._near_claim(raw, rank)))
        wild |= step < 0
        self._claim(raw, rank, wild)
        good = ~wild
        if good.any():
            np.maximum.at(self._at, rank[good], step[good])
            self._newest = max(self._newest, int(step[good].max()))
        return Ranked(ranked.records, rank, ranked.origin, step), np.asarray(wild, np.bool_)

    @staticmethod
    def _beside(raw: _Int, rank: _Int) -> _Bool:
        """Return which records have one of their rank's next or next but one beside them that is near."""
        near = np.zeros(len(raw), np.bool_)
        for apart in (1, 2):
            if len(raw) > apart:
                both = (np.abs(_apart(raw[apart:], raw[:-apart])) <= NEAR) & (rank[apart:] == rank[:-apart])
                near[apart:] |= both
                near[:-apart] |= both
        return near

    def _near_claim(self, raw: _Int, rank: _Int) -> _Bool:
        return np.asarray(np.abs(_apart(raw, self._claimed[rank])) <= NEAR, np.bool_)

    def _claim(self, raw: _Int, rank: _Int, wild: _Bool) -> None:
        self._claimed[rank] = _UNKNOWN
        if wild.any():
            last = np.flatnonzero(wild & np.append(rank[1:] != rank[:-1], True))
            self._claimed[rank[last]] = raw[last]


def _apart(one: _Int, other: _Int) -> _Int:
    """Return ``one - other`` as the numbers wrap: the shorter way round."""
    return np.asarray((one - other + _WRAP // 2) % _WRAP - _WRAP // 2, np.int64)
