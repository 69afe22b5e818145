"""Compare two recordings: what got better, what got worse, and what did not change significantly.

For each series and rank, compare step time, stall, slack and transfer per step; for each rank and layer, compare
the stall. Every value is the median over blocks of steps (:mod:`~swtrace.recording.blocks`), and a shift is the
difference of two such values. Means are reported separately.

A change is reported only if it is significant and large enough to matter. Significance is that of a rank test over the
blocks, corrected for the number of comparisons (:mod:`~swtrace.recording.significance`). The size is that of the
median or the mean. A change says that the runs differ, not why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.errors import EmptySelectionError
from swtrace.ledger.facts import SeriesKey, StepFacts
from swtrace.observing import Roster
from swtrace.recording.blocks import BlockMeans
from swtrace.recording.reader import Recording
from swtrace.recording.replay import Replay
from swtrace.recording.significance import FEWEST, compare, holm, interval
from swtrace.trace.schema import Phase

ALPHA = 0.01
"""Probability of even one false change in the comparison of a series, as far as blocks of steps are independent."""
LEAST_SHARE = 0.02
"""A change is ignored if it is below this share of a quantity ..."""
LEAST_NS = 20_000.0
"""... or below this time per step (for a layer, a tenth of it)."""

QUANTITIES = ("step time", "stall", "slack", "transfer")
_WORSE_WHEN_HIGHER = {"step time": True, "stall": True, "slack": False, "transfer": True}


class Change(StrEnum):
    """How a quantity changed."""

    BETTER = "better"
    WORSE = "worse"
    MIXED = "mixed"
    """Only of a series: one quantity or rank got better, another worse."""
    SAME = "same"
    """No difference that is significant and large enough to matter."""
    UNKNOWN = "unknown"
    """Too few steps to tell."""


class SeriesName(NamedTuple):
    """Identifies a series across runs: two series with equal values are compared."""

    name: str
    start_layer: int
    ranks: int
    of_rank: int | None = None
    """Group rank whose steps are compared, in a pull series, whose ranks have steps of their own."""

    def __str__(self) -> str:
        """Return a name for people."""
        only = "" if self.of_rank is None else f", rank {self.of_rank}"
        return f"series {self.name} from layer {self.start_layer} on {self.ranks} ranks{only}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One quantity of a rank, or of a rank and layer, in both recordings. Times are per step, in ns."""

    quantity: str
    rank: int
    """Group rank."""
    layer: int | None
    a_ns: float
    """Median over blocks."""
    b_ns: float
    interval_ns: tuple[float, float] | None
    """95 % interval of the shift; None for a layer, or if there are too few blocks."""
    a_mean_ns: float
    b_mean_ns: float
    higher: float
    """Probability that a block of b is above one of a."""
    p: float
    """p-value, corrected for the number of comparisons of the series."""
    change: Change

    @property
    def shift_ns(self) -> float:
        """Difference of the medians: b - a."""
        return self.b_ns - self.a_ns

    @property
    def share(self) -> float | None:
        """The shift relative to the value in a; None if that is 0."""
        return self.shift_ns / self.a_ns if self.a_ns > 0 else None


@dataclass(frozen=True, slots=True)
class SeriesDifference:
    """One series in both recordings."""

    series: SeriesName
    a_extent: str
    """Which layers are shared, in words."""
    b_extent: str
    a_steps: int
    b_steps: int
    a_block_steps: int
    b_block_steps: int
    a_stall_ratio: tuple[float, ...]
    """Mean stall divided by mean step time, by group rank."""
    b_stall_ratio: tuple[float, ...]
    a_hosts: tuple[str, ...]
    """Host names by group rank, as of the last step; empty where unknown."""
    b_hosts: tuple[str, ...]
    ranks: tuple[Difference, ...]
    layers: tuple[Difference, ...]

    def named(self, rank: int) -> str:
        """Return a group rank, with its hosts in both recordings if the ranks of one are on several hosts."""
        hosts = " -> ".join(dict.fromkeys(filter(None, (self.a_hosts[rank], self.b_hosts[rank]))))
        several = any(len(set(each) - {""}) > 1 for each in (self.a_hosts, self.b_hosts))
        return f"{rank} ({hosts})" if several and hosts else str(rank)

    @property
    def judged(self) -> tuple[Difference, ...]:
        """The differences that decide the verdict: step time and stall of each rank."""
        return tuple(each for each in self.ranks if each.quantity in {"step time", "stall"})

    @property
    def change(self) -> Change:
        """How step time and stall changed over all ranks."""
        judged = {each.change for each in self.judged}
        if {Change.WORSE, Change.BETTER} <= judged:
            return Change.MIXED
        for change in (Change.WORSE, Change.BETTER, Change.SAME):
            if change in judged:
                return change
        return Change.UNKNOWN


@dataclass(frozen=True, slots=True)
class RecordingDifference:
    """The differences between two recordings, a and b."""

    series: tuple[SeriesDifference, ...]
    only_in_a: tuple[SeriesName, ...]
    only_in_b: tuple[SeriesName, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why b may not be as good as a; empty if there are none."""
        reasons = [f"{name}: not compared, because B has no such steps" for name in self.only_in_a]
        for each in self.series:
            if each.change is Change.UNKNOWN:
                reasons.append(f"{each.series}: too few steps to tell")
            elif each.change in {Change.WORSE, Change.MIXED}:
                what = dict.fromkeys(one.quantity for one in each.judged if one.change is Change.WORSE)
                reasons.append(f"{each.series}: {' and '.join(what)} got worse")
        return tuple(reasons)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain values, with times in seconds."""
        return {
            "alpha": ALPHA,
            "series": [
                {
                    "series": each.series._asdict(),
                    "change": each.change.value,
                    "steps": {"a": each.a_steps, "b": each.b_steps},
                    "block_steps": {"a": each.a_block_steps, "b": each.b_block_steps},
                    "stall_ratio": {"a": list(each.a_stall_ratio), "b": list(each.b_stall_ratio)},
                    "hosts": {"a": list(each.a_hosts), "b": list(each.b_hosts)},
                    "ranks": [_document(one) for one in each.ranks],
                    "layers": [_document(one) for one in each.layers],
                }
                for each in self.series
            ],
            "only_in_a": [name._asdict() for name in self.only_in_a],
            "only_in_b": [name._asdict() for name in self.only_in_b],
        }


def _document(one: Difference) -> dict[str, Any]:
    values = asdict(one)
    for name in ("a_ns", "b_ns", "a_mean_ns", "b_mean_ns"):
        values[name.replace("_ns", "_seconds")] = values.pop(name) * 1e-9
    bounds = values.pop("interval_ns")
    values["shift_seconds"] = one.shift_ns * 1e-9
    values["shift_interval_seconds"] = None if bounds is None else [bound * 1e-9 for bound in bounds]
    values["change"] = one.change.value
    return values


def difference(
    a: Recording, b: Recording, *, phase: Phase | None = None, warmup: int = 3, series: str | None = None
) -> RecordingDifference:
    """Compare two recordings.

    Args:
        a: The recording to compare with.
        b: The recording to judge.
        phase: Compare only steps of this phase; None for all.
        warmup: Number of first steps of each series and run to skip.
        series: Compare only series of this name; None for all.

    Raises:
        EmptySelectionError: a recording has no step to compare.
        RecordingFormatError: a recording is damaged.
    """
    before, after = (
        _measured(recording, Wanted(phase, warmup, series), letter) for recording, letter in ((a, "A"), (b, "B"))
    )
    return RecordingDifference(
        series=tuple(_series(name, before[name], after[name]) for name in before if name in after),
        only_in_a=tuple(name for name in before if name not in after),
        only_in_b=tuple(name for name in after if name not in before),
    )


@dataclass(slots=True)
class Wanted:
    """Which steps to compare, and counts of the steps that were available."""

    phase: Phase | None = None
    warmup: int = 0
    series: str | None = None
    names: Counter[str] = field(default_factory=Counter)
    """Finished steps by series name, before any selection."""
    phases: Counter[int] = field(default_factory=Counter)
    """Complete steps after warm-up, by phase."""


def _measured(recording: Recording, wanted: Wanted, letter: str) -> dict[SeriesName, Measured]:
    """Measure a recording. If it has no wanted step, raise an error that says what it has instead."""
    measured = {
        name: one
        for name, one in measure(Roster(Replay(recording), keep_steps=True).steps(), wanted).items()
        if one.by_rank.steps
    }
    if measured:
        return measured
    where = f"{letter} ({recording.paths[0]})"
    if not wanted.names:
        raise EmptySelectionError(f"{where} holds no finished step: there is nothing to compare")
    if wanted.series is not None and wanted.series not in wanted.names:
        raise EmptySelectionError(f"{where} has no series {wanted.series!r}: it has {', '.join(sorted(wanted.names))}")
    if not wanted.phases:
        raise EmptySelectionError(
            f"{where}: no complete step remains after skipping {wanted.warmup} of {max(wanted.names.values())} steps as"
            " warm-up; --warmup sets how many are skipped"
        )
    there = ", ".join(f"{phase.name.lower()} ({wanted.phases[phase]})" for phase in Phase if phase in wanted.phases)
    asked = "any" if wanted.phase is None else wanted.phase.name.lower()
    raise EmptySelectionError(f"{where} has no step of phase {asked}: it has {there or 'steps of unknown phases'}")


@dataclass(slots=True)
class Measured:
    """One series of one recording, as block means."""

    layers: tuple[int, ...]
    extent: str
    by_rank: BlockMeans
    """``[quantity, rank]``"""
    stall: BlockMeans
    """``[rank, position]``"""
    hosts: tuple[str, ...] = ()
    """By group rank, as of the last step."""
    seen: dict[SeriesKey, int] = field(default_factory=dict)
    """Steps so far by run, because each run has its own warm-up."""


def measure(steps: Iterable[StepFacts], wanted: Wanted) -> dict[SeriesName, Measured]:
    """Sum up the steps of every series in bounded memory. Skip aborted and incomplete steps."""
    measured: dict[SeriesName, Measured] = {}
    for step in steps:
        wanted.names[step.series.name] += 1
        if wanted.series not in {None, step.series.name}:
            continue
        running = step.running
        ranks = len(running)
        name = SeriesName(step.series.name, step.series.start_layer, len(step.ranks), step.of_rank)
        into = measured.get(name)
        if into is None or into.stall.mean().shape[0] != ranks or into.layers != step.layers:
            extent = next(info.extent for info in step.infos if info is not None)
            by_rank, stall = BlockMeans((len(QUANTITIES), ranks)), BlockMeans((ranks, len(step.layers)))
            into = measured[name] = Measured(step.layers, extent, by_rank, stall)
        into.seen[step.series] = into.seen.get(step.series, 0) + 1
        if into.seen[step.series] <= wanted.warmup:
            continue
        if not step.whole[running].all() or step.aborted:
            continue
        phases = set(step.phase[running].tolist())
        wanted.phases.update(phases)
        if wanted.phase is not None and phases != {wanted.phase}:
            continue
        sums = (step.duration_ns, *(each.sum(axis=1) for each in (step.stall_ns, step.slack_ns, step.transfer_ns)))
        into.by_rank.add(np.stack(sums)[:, running].astype(np.float64))
        into.stall.add(step.stall_ns[running])
        into.hosts = step.hosts
    return measured


def _series(name: SeriesName, a: Measured, b: Measured) -> SeriesDifference:
    ranks = _differences(a, b, name.of_rank or 0)
    a_mean, b_mean = a.by_rank.mean(), b.by_rank.mean()
    return SeriesDifference(
        series=name,
        a_extent=a.extent,
        b_extent=b.extent,
        a_steps=a.by_rank.steps,
        b_steps=b.by_rank.steps,
        a_block_steps=a.by_rank.block_steps,
        b_block_steps=b.by_rank.block_steps,
        a_stall_ratio=tuple((a_mean[1] / np.maximum(1.0, a_mean[0])).tolist()),
        b_stall_ratio=tuple((b_mean[1] / np.maximum(1.0, b_mean[0])).tolist()),
        a_hosts=a.hosts,
        b_hosts=b.hosts,
        ranks=tuple(one for one in ranks if one.layer is None),
        layers=tuple(one for one in ranks if one.layer is not None),
    )


def _differences(a: Measured, b: Measured, first: int) -> list[Difference]:
    """Return the differences of all quantities; ``first`` is the first group rank."""
    found: list[Difference] = []
    by_rank_a, by_rank_b = a.by_rank.means(), b.by_rank.means()
    layers_a, layers_b = a.stall.means(), b.stall.means()
    enough = min(len(by_rank_a), len(by_rank_b)) >= FEWEST
    mean_a, mean_b = a.by_rank.mean(), b.by_rank.mean()
    for rank in range(by_rank_a.shape[2]):
        for index, quantity in enumerate(QUANTITIES):
            samples = by_rank_a[:, index, rank], by_rank_b[:, index, rank]
            means = float(mean_a[index, rank]), float(mean_b[index, rank])
            bounds = interval(*samples) if enough else None
            found.append(_difference(quantity, first + rank, None, *samples, means, bounds))
    stall_a, stall_b = a.stall.mean(), b.stall.mean()
    in_b = {layer: position for position, layer in enumerate(b.layers)}
    both = [(layer, position, in_b[layer]) for position, layer in enumerate(a.layers) if layer in in_b]
    for rank in range(layers_a.shape[1]):
        for layer, at_a, at_b in both:
            means = float(stall_a[rank, at_a]), float(stall_b[rank, at_b])
            if not any(means):
                continue  # the rank is the source, or there is no stall in either recording
            samples = layers_a[:, rank, at_a], layers_b[:, rank, at_b]
            found.append(_difference("stall", first + rank, layer, *samples, means, None))
    corrected = holm(np.array([one.p for one in found])) if found else np.zeros(0)
    return [_judged(one, float(p), enough=enough) for one, p in zip(found, corrected, strict=True)]


def _difference(
    quantity: str,
    rank: int,
    layer: int | None,
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    means: tuple[float, float],
    bounds: tuple[float, float] | None,
) -> Difference:
    compared = compare(a, b)
    return Difference(
        quantity=quantity,
        rank=rank,
        layer=layer,
        a_ns=float(np.median(a)) if len(a) else 0.0,
        b_ns=float(np.median(b)) if len(b) else 0.0,
        interval_ns=bounds,
        a_mean_ns=means[0],
        b_mean_ns=means[1],
        higher=compared.higher,
        p=compared.p,
        change=Change.UNKNOWN,
    )


def _judged(one: Difference, p: float, *, enough: bool) -> Difference:
    """Return a difference with its change. The rank test decides existence and direction; medians and means, size."""
    up = one.higher > 0.5  # noqa: PLR2004 - as often above as below
    moved = [shift if up else -shift for shift in (one.shift_ns, one.b_mean_ns - one.a_mean_ns)]
    larger = max(one.a_ns, one.b_ns, one.a_mean_ns, one.b_mean_ns)
    least = max(LEAST_SHARE * larger, LEAST_NS if one.layer is None else LEAST_NS / 10)
    if not enough:
        change = Change.UNKNOWN
    elif p >= ALPHA or max(moved) < least:
        change = Change.SAME
    else:
        change = Change.WORSE if up == _WORSE_WHEN_HIGHER[one.quantity] else Change.BETTER
    return replace(one, p=p, change=change)
