"""Convert recorded 32-bit step numbers into numbers that never wrap, and detect wild ones.

A rank's step numbers increase by one. A record is wild if its number is far from those of its rank, of the group and
of the neighbouring records: it was damaged, or written by something else. One such record must not make all others
look old. If a rank really jumps, because it was not read for a while, its next record is near the first one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.ledger.intake import Ranked
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, Untimed

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

NEAR = 64
"""Steps further apart than this count as far from each other."""
_WRAP = 1 << 32
_UNKNOWN = -1


class Numbering:
    """The step numbers of one series.

    Args:
        ranks: Size of the group.
        layers: Number of positions.
    """

    def __init__(self, ranks: int, layers: int) -> None:
        self._at = np.full(ranks, _UNKNOWN, np.int64)
        """The last step of each rank."""
        self._claimed = np.full(ranks, _UNKNOWN, np.int64)
        """The step of each rank's last record, if that record counted as wild."""
        self._newest = _UNKNOWN
        self._cells = layers + 1
        self._last = np.full(ranks, _UNKNOWN, np.int64)
        """The furthest record of each rank: ``step * (layers + 1) + place``."""

    def forget(self, rank: int) -> None:
        """Forget a rank's steps, but not how far its records reach, because some may be pending."""
        self._at[rank] = self._claimed[rank] = _UNKNOWN

    def follow(self, ranked: Ranked) -> Ranked | None:
        """Return records with their full step numbers if each directly follows its rank's previous one, else None.

        The order is: position by position, then the STEP record, then the next step. Untimed steps have only the STEP
        record. A LAUNCH record comes after its TRANSFER record. No state changes: see :meth:`note`.
        """
        group_rank = ranked.group_rank[ranked.starts]
        before = self._last[group_rank]
        if (before == _UNKNOWN).any() or np.bincount(group_rank).max() > 1:
            return None
        step = ranked.step + self._begun
        at = step * self._cells + ranked.place
        ahead = np.diff(at, prepend=0)
        ahead[ranked.starts] = at[ranked.starts] - before
        odd = np.flatnonzero(ahead != 1)
        if len(odd):
            ahead, records = ahead[odd], ranked.records[odd]
            untimed = (records["kind"] == Kind.STEP) & (records.view(STEP)["untimed"] != Untimed.TIMED)
            launched = records["kind"] == Kind.LAUNCH
            if not np.where(launched, ahead == 0, untimed & (ahead == self._cells)).all():
                return None
            # A LAUNCH record without neighbours counts as wild if it is far.
            if launched.any() and max(self._newest, int(step.max())) - int(step.min()) > NEAR:
                return None
        return ranked.numbered(step, in_order=True)

    def note(self, ranked: Ranked) -> None:
        """Remember how far records with full step numbers reach."""
        rank, last = ranked.group_rank[ranked.starts], ranked.step[ranked.ends]
        self._at[rank], self._claimed[rank] = last, _UNKNOWN
        self._last[rank] = last * self._cells + ranked.place[ranked.ends]
        self._newest = max(self._newest, int(last.max()))

    def number(self, ranked: Ranked) -> tuple[Ranked, _Bool]:
        """Return the records with their full step numbers, and which of them are wild."""
        step, wild = np.zeros(len(ranked), np.int64), np.zeros(len(ranked), np.bool_)
        for kind in Kind:
            which = ranked.of_kind(kind)
            step[which], wild[which] = self._number(ranked.step[which], ranked.group_rank[which])
        good = ~wild
        np.maximum.at(self._last, ranked.group_rank[good], step[good] * self._cells + ranked.place[good])
        return ranked.numbered(step), wild

    @property
    def _begun(self) -> int:
        """Offset to add to a recorded number that has not wrapped since the newest one."""
        return self._newest // _WRAP * _WRAP

    def _number(self, raw: _Int, rank: _Int) -> tuple[_Int, _Bool]:
        """Return the full numbers of records of one kind, grouped by rank, and which of them are wild."""
        if not len(raw):
            return raw, np.zeros(0, np.bool_)
        begun = self._begun
        if self._newest != _UNKNOWN and self._newest - NEAR <= raw.min() + begun <= raw.max() + begun <= (
            self._newest + NEAR
        ):  # the usual case: no number wraps or is far
            step = raw + begun
            self._at[rank] = step  # keeps the last one of each rank
            self._claimed[rank] = _UNKNOWN
            self._newest = max(self._newest, int(step.max()))
            return step, np.zeros(len(raw), np.bool_)
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
        return step, np.asarray(wild, np.bool_)

    @staticmethod
    def _beside(raw: _Int, rank: _Int) -> _Bool:
        """Return which records are near one of the two records before or after them, of the same rank."""
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
    """Return ``one - other`` modulo the wrap, as the value closest to 0."""
    return np.asarray((one - other + _WRAP // 2) % _WRAP - _WRAP // 2, np.int64)
