"""Batches of any number of ranks become one: what taking records in costs, it costs once, not once per rank.

A batch of records names its series by index in its rank's own table. A :class:`Routes` is that table
as arrays, so that the records of all ranks find their series, group rank and number of layers together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from swtrace.trace.identity import RankKey
from swtrace.trace.records import STEP, TRANSFER, WORDS, Records
from swtrace.trace.schema import Kind

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

Batch = tuple[RankKey, Records]

_INDEXES = 256
"""What a record's series index can be."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Records of one series and one kind, of any number of ranks; each rank's in the order in which it wrote them."""

    records: Records
    group_rank: _Int
    origin: _Int
    """Index of the batch that each record came in."""
    step: _Int
    """As recorded, until :class:`~swtrace.ledger.numbering.Numbering` has made it a number that does not wrap."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def take(self, which: _Bool) -> Ranked:
        """Return some of the records."""
        if which.all():
            return self
        return Ranked(self.records[which], self.group_rank[which], self.origin[which], self.step[which])

    def of_batch(self, origin: int) -> Ranked:
        """Return the records of one batch."""
        return self.take(self.origin == origin)

    def as_steps(self) -> Ranked:
        """Return the same records, read as STEP records."""
        records = self.records.view(STEP)
        return Ranked(records, self.group_rank, self.origin, records["step"].astype(np.int64))


class Routes:
    """Where a rank's records go, by the series index that they carry. An index without a route goes nowhere."""

    def __init__(self) -> None:
        self.table = np.zeros((3, _INDEXES), np.int64)
        """``[series number, group rank, layers]`` by index; the number is -1 where there is no route."""
        self.table[0] = -1
        self.numbers: tuple[int, ...] = ()
        """Numbers of all series that are routed to."""

    def set(self, index: int, number: int, group_rank: int, layers: int) -> None:
        """Route records of an index to a series.

        Args:
            index: In the rank's table of series.
            number: The ledger's number of the series.
            group_rank: The rank's own, in that series.
            layers: Records of positions beyond belong to nothing.
        """
        self.table[:, index] = number, group_rank, layers
        self.numbers = tuple(sorted({each for each in self.table[0].tolist() if each >= 0}))


@dataclass(frozen=True, slots=True)
class Sorted:
    """A round of batches, sorted by series and kind."""

    of_series: tuple[tuple[int, Ranked, Ranked, Ranked], ...]
    """Number of the series, its TRANSFER, STEP and LAUNCH records."""
    unknown: _Int
    """``[batch]``: records that the tables do not name."""

    @classmethod
    def of(cls, routes: Sequence[Routes], batches: Sequence[Records]) -> Self:
        """Sort one batch of each of some ranks, in one pass over all of them.

        Args:
            routes: Of each batch's rank.
            batches: At least one; TRANSFER or STEP records.
        """
        # As words: numpy would compare the fields of every two batches.
        records = np.concatenate([batch.view(WORDS) for batch in batches]).view(TRANSFER)
        origin = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        tables = np.stack([route.table for route in routes], axis=1).reshape(3, -1)
        index = origin * _INDEXES + records["series"]
        number, group_rank, layers = (column[index] for column in tables)
        kind = records["kind"]
        transfers = (kind == Kind.TRANSFER) & (records["position"] < layers)
        steps = kind == Kind.STEP
        launches = (kind == Kind.LAUNCH) & (records["position"] < layers)
        claimed = (transfers | steps | launches) & (number >= 0)
        unknown = np.zeros(len(batches), np.int64)
        if not claimed.all():
            unknown += np.bincount(origin[~claimed], minlength=len(batches))
            transfers, steps, launches = transfers & claimed, steps & claimed, launches & claimed
        numbers = sorted({number for route in routes for number in route.numbers})
        whole = Ranked(records, group_rank, origin, records["step"].astype(np.int64))
        parts = []
        for each in numbers:
            mine = number == each if len(numbers) > 1 else np.True_
            launched = whole.take(launches & mine)
            parts.append((each, whole.take(transfers & mine), whole.take(steps & mine).as_steps(), launched))
        return cls(tuple(parts), unknown)


def rounds(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Yield the batches in order, in rounds in which no rank has two: what is laid out at once stays bounded."""
    taken: dict[RankKey, Records] = {}
    for rank, records in batches:
        if rank in taken:
            yield list(taken.items())
            taken = {}
        if len(records):
            taken[rank] = records
    if taken:
        yield list(taken.items())
