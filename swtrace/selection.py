"""Select waits of finished steps and sum them up, for tests, scripts and reports.

The formulas are the ledger's: its facts are summed into a :class:`~swtrace.ledger.facts.Recent`, which computes the
ratios.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from operator import methodcaller
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from swtrace.errors import SettingsError, SwtraceError
from swtrace.ledger.facts import Recent, SeriesKey, StepFacts
from swtrace.ledger.recent import Sums, Total, sums_of
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import Phase

Mask = npt.NDArray[np.bool_]

__tracebackhide__ = methodcaller("errisinstance", SwtraceError)
"""For pytest: the traceback of such an error ends at the line of the test, not here."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which waits to select. None selects everything."""

    series: str | None = None
    """Name of a series."""
    rank: int | None = None
    """Global rank."""
    layer: int | None = None
    """Absolute index."""
    phase: str | None = None
    """``prefill``, ``decode``, ``mixed``, ``dummy`` or ``other``."""
    steps: range | slice | None = None
    """Step numbers, as the ranks count them."""
    warmup: int = 0
    """How many of the first recorded steps of each series and run to leave out; in a pull series, of each rank."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the selection with these fields.

        Raises:
            SettingsError: a field does not exist, or its value is not allowed.
        """
        for name in given:
            if name not in _FIELDS:
                raise SettingsError(f"no selection by {unknown_name(name)}")
        return cls(**given)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            SettingsError: a value is not allowed.
        """
        for each in fields(self):
            value, (must_be, fits) = getattr(self, each.name), _FIELDS[each.name]
            if not fits(value) and not (value is None and each.default is None):
                raise SettingsError(f"{each.name}={value!r}: must be {must_be}")
        if self.phase is not None and self.phase.upper() not in Phase.__members__:
            known = ", ".join(phase.name.lower() for phase in Phase)
            raise SettingsError(f"phase={self.phase!r}: must be one of: {known}")

    def pick(self, steps: Iterable[StepFacts]) -> Iterator[Picked]:
        """Yield the selected steps, each with the selected ranks and positions. Aborted steps are left out."""
        seen: Counter[tuple[SeriesKey, int | None]] = Counter()
        for step in steps:
            if self.series is not None and step.series.name != self.series:
                continue
            seen[step.series, step.of_rank] += 1
            if seen[step.series, step.of_rank] <= self.warmup or step.aborted:
                continue
            if not _within(step.step, self.steps):
                continue
            ranks = step.ended.copy()
            if self.rank is not None:
                ranks &= np.array([key.rank == self.rank for key in step.ranks], np.bool_)
            if self.phase is not None:
                ranks &= step.phase == Phase[self.phase.upper()]
            positions = np.ones(step.present.shape[1], np.bool_)
            if self.layer is not None:
                positions = np.array(step.layers) == self.layer
                # Leave out ranks that have no record of the layer in this step.
                ranks &= step.present[:, positions].any(axis=1)
            if ranks.any() and positions.any():
                yield Picked(step, ranks, positions)

    def __str__(self) -> str:
        """Return the fields that select something, as a caller writes them."""
        given = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, (value, default) in given.items() if value != default)


def _within(step: int, wanted: range | slice | None) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, range):
        return step in wanted
    start, stop, stride = wanted.start or 0, wanted.stop, wanted.step or 1
    return bool(start <= step and (stop is None or step < stop) and (step - start) % stride == 0)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object, least: int = 0) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def _are_steps(value: object) -> bool:
    """Return whether these are step numbers. A slice cannot count from the end: a live session has none."""
    if not isinstance(value, slice):
        return isinstance(value, range)
    bounds = ((value.start, 0), (value.stop, 0), (value.step, 1))
    return all(bound is None or _is_count(bound, least) for bound, least in bounds)


_FIELDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "series": ("the name of a series", _is_text),
    "rank": ("a rank's number", _is_count),
    "layer": ("a layer's number", _is_count),
    "phase": ("the name of a phase", _is_text),
    "steps": ("a range of step numbers, or a slice that counts forwards from 0", _are_steps),
    "warmup": ("a number of steps from 0", _is_count),
}
"""What each field must be, unless it is None."""


def unknown_name(name: str, others: Collection[str] = ()) -> str:
    """Return a misspelt name with the nearest one, or with all: those of a selection, and ``others``."""
    from difflib import get_close_matches  # for the rare case only

    known = sorted((*_FIELDS, *others))
    near = get_close_matches(name, known, n=1)
    return f"{name!r}: did you mean {near[0]}?" if near else f"{name!r}: must be one of: {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class Picked:
    """One step, with the selected ranks and positions."""

    step: StepFacts
    ranks: Mask
    """``[rank]``"""
    positions: Mask
    """``[position]``"""

    @property
    def cells(self) -> Mask:
        """``[rank, position]``: the selected waits."""
        return np.asarray(self.ranks[:, np.newaxis] & self.positions, np.bool_)

    @property
    def known(self) -> list[int]:
        """Group ranks that have all selected records. Sums of the other ranks would be too low."""
        complete = (self.step.present | ~self.positions).all(axis=1)
        return np.flatnonzero(self.ranks & complete).tolist()

    def sums(self) -> Iterator[tuple[int, Sums, int]]:
        """Yield each known rank with its sums over the selected positions, and the bytes of one of its broadcasts."""
        sums = sums_of(self.step, None if self.positions.all() else self.positions)
        for rank in self.known:
            info = self.step.infos[rank]
            yield rank, sums[:, rank], 0 if info is None else info.layer_bytes


def sum_up(steps: Iterable[StepFacts], selection: Selection) -> Recent:
    """Return the sums over the selected waits of all ranks together."""
    total = Total()
    for picked in selection.pick(steps):
        for _, sums, layer_bytes in picked.sums():
            total.add(sums, layer_bytes)
    return total.recent()


def sum_up_by_rank(steps: Iterable[StepFacts], selection: Selection) -> dict[tuple[SeriesKey, RankKey], Recent]:
    """Return the sums by series and rank."""
    totals: dict[tuple[SeriesKey, RankKey], Total] = {}
    for picked in selection.pick(steps):
        for rank, sums, layer_bytes in picked.sums():
            totals.setdefault((picked.step.series, picked.step.ranks[rank]), Total()).add(sums, layer_bytes)
    return {key: total.recent() for key, total in totals.items()}


def occupancy(steps: Iterable[StepFacts], selection: Selection) -> dict[str, float]:
    """Return the number of a rank's windows in each state, averaged over the time of the selected steps and over ranks.

    A window is ``inflight`` from issue to ready, ``ready`` until its wait begins, ``in_use`` until it is issued
    again, else ``free``.
    """
    columns: dict[tuple[SeriesKey, RankKey], list[npt.NDArray[np.int64]]] = {}
    spans: dict[tuple[SeriesKey, RankKey], list[int]] = {}
    windows: dict[tuple[SeriesKey, RankKey], int] = {}
    for picked in selection.pick(steps):
        step = picked.step
        for rank in np.flatnonzero(picked.ranks).tolist():
            info, key = step.infos[rank], (step.series, step.ranks[rank])
            held = step.present[rank] & (step.source != rank)
            rows = (step.window, step.issued_ns, step.ready_ns, step.wait_begin_ns)
            columns.setdefault(key, []).append(np.stack([row[rank][held].astype(np.int64) for row in rows]))
            spans.setdefault(key, []).extend((int(step.begin_ns[rank]), int(step.end_ns[rank])))
            windows[key] = 0 if info is None else info.window_count
    states = dict.fromkeys(("free", "inflight", "ready", "in_use"), 0.0)
    for key, parts in columns.items():
        begin, end = min(spans[key]), max(spans[key])
        for state, mean in _occupied(np.concatenate(parts, axis=1), begin, end, windows[key]).items():
            states[state] += mean / len(columns)
    return states


def _occupied(rows: npt.NDArray[np.int64], begin: int, end: int, windows: int) -> dict[str, float]:
    window, issued, ready, wait = rows[:, np.lexsort((rows[1], rows[0]))]
    following = np.full(len(window), end)
    same = window[1:] == window[:-1]
    following[:-1][same] = issued[1:][same]

    def share(since: npt.NDArray[np.int64], until: npt.NDArray[np.int64]) -> float:
        length = np.clip(until, begin, end) - np.clip(since, begin, end)
        return float(np.maximum(0, length).sum()) / max(1, end - begin)

    arrived = np.minimum(ready, following)
    read = np.clip(wait, arrived, following)
    states = {"inflight": share(issued, arrived), "ready": share(arrived, read), "in_use": share(read, following)}
    return {"free": max(0.0, windows - sum(states.values())), **states}
