"""Merge batches of any number of ranks, rank by rank, so that the overhead is paid once.

Records refer to their series by index in their rank's own table. A :class:`Routes` is that table as arrays. With it,
series, group rank and number of layers are looked up for the records of all ranks at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from swtrace.trace.identity import RankKey
from swtrace.trace.records import TRANSFER, WORDS, Records
from swtrace.trace.schema import RECORD_BYTES, Kind

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

Batch = tuple[RankKey, Records]
Round = Mapping[RankKey, Records]
"""At most one batch of each rank."""

CELL = np.dtype((np.void, RECORD_BYTES))
"""A record as raw bytes, because numpy copies structured values field by field."""
_TRANSFER, _STEP, _LAUNCH, _REQUEST = map(int, (Kind.TRANSFER, Kind.STEP, Kind.LAUNCH, Kind.REQUEST))
_INDEXES = 256
"""Number of possible series indexes in a record."""


@dataclass(frozen=True)
class Ranked:
    """Records of one series from any number of ranks, grouped by rank, each rank's in the order of writing."""

    records: Records
    group_rank: _Int
    origin: _Int
    """Index of the rank among those whose records are processed together."""
    step: _Int
    """As recorded, until :class:`~swtrace.ledger.numbering.Numbering` turns it into a number that does not wrap."""
    place: _Int
    """Position, or the number of layers for a STEP record."""
    in_order: bool = False
    """Each record follows the previous one of its rank, and all have room: none is odd, late or a duplicate."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    @cached_property
    def starts(self) -> npt.NDArray[np.intp]:
        """Index of the first record of each rank."""
        begins = np.ones(len(self), np.bool_)
        np.not_equal(self.origin[1:], self.origin[:-1], out=begins[1:])
        return np.flatnonzero(begins)

    @property
    def ends(self) -> npt.NDArray[np.intp]:
        """Index of the last record of each rank."""
        return np.append(self.starts[1:], len(self)) - 1

    def take(self, which: _Bool) -> Ranked:
        """Return some of the records."""
        if which.all():
            return self
        return Ranked(
            self.records.view(CELL)[which].view(TRANSFER),
            self.group_rank[which],
            self.origin[which],
            self.step[which],
            self.place[which],
        )

    def numbered(self, step: _Int, *, in_order: bool = False) -> Ranked:
        """Return the same records with their full step numbers."""
        return Ranked(self.records, self.group_rank, self.origin, step, self.place, in_order)

    def of_kind(self, kind: Kind) -> _Bool:
        """Return which records are of a kind."""
        return np.asarray(self.records["kind"] == int(kind), np.bool_)


class Routes:
    """The series of a rank's records, by series index. Records of an index without a route are ignored."""

    def __init__(self) -> None:
        self.table = np.zeros((3, _INDEXES), np.int64)
        """``[series number, layers, group rank]`` by index; the number is -1 where there is no route."""
        self.table[0] = -1
        self.numbers: tuple[int, ...] = ()
        """Numbers of all routed series."""
        self.group_rank: int | None = None
        """The rank's group rank, if it is the same in all routed series."""

    def set(self, index: int, number: int, group_rank: int, layers: int) -> None:
        """Route records of an index to a series.

        Args:
            index: Index in the rank's table of series.
            number: The ledger's number of the series.
            group_rank: The rank's group rank in that series.
            layers: Number of layers. Records of later positions are ignored.
        """
        self.table[:, index] = number, layers, group_rank
        routed = self.table[0] >= 0
        self.numbers = tuple(np.unique(self.table[0, routed]).tolist())
        self.group_rank = group_rank if (self.table[2, routed] == group_rank).all() else None

    @staticmethod
    def follow(several: Sequence[Routes], series: npt.NDArray[np.uint8], lengths: Sequence[int]) -> tuple[_Int, ...]:
        """Return series number, layers and group rank of records.

        Args:
            several: The routes of each rank.
            series: The series index of each record, grouped by rank.
            lengths: How many records each rank has.
        """
        one = several[0].table[:2]
        if all(routes.group_rank is not None and (routes.table[:2] == one).all() for routes in several):
            # Usually, all ranks have the same series.
            own = np.array([routes.group_rank for routes in several], np.int64)
            return one[0][series], one[1][series], np.repeat(own, lengths)
        tables = np.stack([routes.table for routes in several], axis=1).reshape(3, -1)
        index = np.repeat(np.arange(0, len(several) * _INDEXES, _INDEXES), lengths) + series
        return tables[0][index], tables[1][index], tables[2][index]


@dataclass(frozen=True, slots=True)
class Sorted:
    """Records of some ranks, sorted by series."""

    of_series: tuple[tuple[int, Ranked], ...]
    """Number and records of each series, without those of requests."""
    requests: tuple[tuple[int, Records, _Int], ...]
    """Number of a series, its REQUEST records, and the group rank of each."""
    unknown: _Int
    """``[rank]``: number of records without an entry in the tables."""

    @classmethod
    def of(cls, routes: Sequence[Routes], batches: Sequence[Sequence[Records]], layers: Mapping[int, int]) -> Sorted:
        """Sort the batches of some ranks, in one pass over all of them.

        Args:
            routes: Routes of each rank.
            batches: Batches of each rank, in the order in which it wrote them; at least one.
            layers: Number of layers of each series.
        """
        # As words, because numpy would compare the fields of every pair of batches.
        records = np.concatenate([batch.view(WORDS) for theirs in batches for batch in theirs]).view(TRANSFER)
        lengths = [sum(map(len, theirs)) for theirs in batches]
        origin = np.repeat(np.arange(len(batches)), lengths)
        kind = np.ascontiguousarray(records["kind"])
        is_step = kind == _STEP
        place = records["position"].astype(np.int64)
        number, positions, group_rank = Routes.follow(routes, records["series"], lengths)
        claimed = (((kind == _TRANSFER) | (kind == _LAUNCH)) & (place < positions) | is_step) & (number >= 0)
        of_request = (kind == _REQUEST) & (number >= 0)
        requests = tuple(
            (each, records.view(CELL)[theirs].view(TRANSFER), group_rank[theirs])
            for each in np.unique(number[of_request]).tolist()
            for theirs in (of_request & (number == each),)
        )
        unknown = np.zeros(len(batches), np.int64)
        if not claimed.all():
            unknown += np.bincount(origin[~(claimed | of_request)], minlength=len(batches))
        step = records["step"].astype(np.int64)
        numbers = sorted({number for route in routes for number in route.numbers})
        parts = []
        for each in numbers:
            mine = claimed & (number == each) if len(numbers) > 1 else claimed
            whole = Ranked(records, group_rank, origin, step, np.where(is_step, layers[each], place))
            parts.append((each, whole.take(mine)))
        return cls(tuple(parts), requests, unknown)


def rounds(batches: Sequence[Batch], most: int) -> Iterator[Round]:
    """Yield the batches in order, in rounds with at most one batch per rank and about ``most`` records in total."""
    taken: dict[RankKey, Records] = {}
    for rank, records in batches:
        if rank in taken:
            yield from _cut(taken, most)
            taken = {}
        if len(records):
            taken[rank] = records
    yield from _cut(taken, most)


def _cut(whole: Round, most: int) -> Iterator[Round]:
    of_each = max(1, most // max(1, len(whole)))
    for at in range(0, max(map(len, whole.values()), default=0), of_each):
        yield {rank: records[at : at + of_each] for rank, records in whole.items() if len(records) > at}


def by_rank(several: Iterable[Round]) -> dict[RankKey, list[Records]]:
    """Return each rank's batches of several rounds, in order."""
    theirs: dict[RankKey, list[Records]] = {}
    for each in several:
        for rank, records in each.items():
            theirs.setdefault(rank, []).append(records)
    return theirs
