"""Two recordings beside each other: what got better, what got worse, and what cannot be told apart.

Per series and rank the step time, stall, slack and transfer per step are compared; per rank and layer the
stall. A change is called one only if a rank test over blocks of steps
(:mod:`~swtrace.recording.blocks`, :mod:`~swtrace.recording.rank_test`) finds it beyond chance, corrected for
the number of comparisons, and it is large enough to matter. It says that the runs differ, not why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from swtrace.ledger.facts import SeriesKey, StepFacts
from swtrace.recording.blocks import BlockMeans
from swtrace.recording.rank_test import FEWEST, compare, holm
from swtrace.recording.reader import Recording
from swtrace.recording.replay import Replayer
from swtrace.trace.schema import Phase, StepFlag

ALPHA = 0.01
"""Chance of even one false change in a whole comparison, as far as blocks of steps are independent."""
LEAST_SHARE = 0.02
"""A change below this share of a quantity ..."""
LEAST_NS = 20_000.0
"""... or below this time per step (a layer: a tenth of it) is not worth a word."""

QUANTITIES = ("step time", "stall", "slack", "transfer")
_WORSE_WHEN_HIGHER = {"step time": True, "stall": True, "slack": False, "transfer": True}


class Change(StrEnum):
    """What became of a quantity."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    """No difference that is beyond chance and large enough to matter."""
    UNKNOWN = "unknown"
    """Too few steps to tell."""


class SeriesName(NamedTuple):
    """What makes two series of two runs comparable."""

    name: str
    start_layer: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One quantity of one rank, or of one rank and layer, in both recordings. Times per step, in ns."""

    quantity: str
    rank: int
    """Group rank."""
    layer: int | None
    a_ns: float
    """Mean."""
    b_ns: float
    shift_ns: float
    """Median difference of blocks, b - a."""
    p: float
    """Corrected for the number of comparisons."""
    change: Change

    @property
    def share(self) -> float | None:
        """The shift per value in a; None where that is 0."""
        return self.shift_ns / self.a_ns if self.a_ns > 0 else None


@dataclass(frozen=True, slots=True)
class SeriesDifference:
    """One series in both recordings."""

    series: SeriesName
    a_steps: int
    b_steps: int
    a_block_steps: int
    b_block_steps: int
    a_stall_ratio: tuple[float, ...]
    """By group rank."""
    b_stall_ratio: tuple[float, ...]
    ranks: tuple[Difference, ...]
    layers: tuple[Difference, ...]

    @property
    def change(self) -> Change:
        """Worse if the step time or stall of any rank is; better if that of any is and none is worse."""
        judged = {each.change for each in self.ranks if each.quantity in {"step time", "stall"}}
        for change in (Change.WORSE, Change.BETTER, Change.SAME):
            if change in judged:
                return change
        return Change.UNKNOWN


@dataclass(frozen=True, slots=True)
class RecordingDifference:
    """Two recordings beside each other."""

    series: tuple[SeriesDifference, ...]
    only_in_a: tuple[SeriesName, ...]
    only_in_b: tuple[SeriesName, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain values; times in seconds."""
        return {
            "alpha": ALPHA,
            "series": [
                {
                    "series": each.series._asdict(),
                    "change": each.change.value,
                    "steps": {"a": each.a_steps, "b": each.b_steps},
                    "block_steps": {"a": each.a_block_steps, "b": each.b_block_steps},
                    "stall_ratio": {"a": list(each.a_stall_ratio), "b": list(each.b_stall_ratio)},
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
    for name in ("a_ns", "b_ns", "shift_ns"):
        values[name.replace("_ns", "_seconds")] = values.pop(name) * 1e-9
    values["change"] = one.change.value
    return values


def difference(
    a: Recording, b: Recording, *, phase: Phase | None = None, warmup: int = 3, series: str | None = None
) -> RecordingDifference:
    """Compare two recordings.

    Args:
        a: The one to compare with.
        b: The one to judge.
        phase: Only steps of this phase; None: all.
        warmup: First steps of each series to leave out.
        series: Only series of this name.

    Raises:
        RecordingFormatError: a recording is damaged.
    """
    before = measure(Replayer(a).steps(), phase=phase, warmup=warmup, series=series)
    after = measure(Replayer(b).steps(), phase=phase, warmup=warmup, series=series)
    return RecordingDifference(
        series=tuple(_series(name, before[name], after[name]) for name in before if name in after),
        only_in_a=tuple(name for name in before if name not in after),
        only_in_b=tuple(name for name in after if name not in before),
    )


@dataclass(slots=True)
class Measured:
    """One series of one recording, as block means."""

    start_layer: int
    by_rank: BlockMeans
    """``[quantity, rank]``"""
    stall: BlockMeans
    """``[rank, position]``"""
    seen: dict[SeriesKey, int] = field(default_factory=dict)
    """Steps so far, by run: each run warms up."""


def measure(
    steps: Iterable[StepFacts], *, phase: Phase | None = None, warmup: int = 0, series: str | None = None
) -> dict[SeriesName, Measured]:
    """Sum up the steps of every series, in bounded memory. Aborted and incomplete steps are left out."""
    measured: dict[SeriesName, Measured] = {}
    for step in steps:
        if series is not None and step.series.name != series:
            continue
        ranks, layers = step.present.shape
        name = SeriesName(step.series.name, step.series.start_layer, ranks)
        into = measured.get(name)
        if into is None or into.stall.mean().shape != (ranks, layers):
            into = measured[name] = Measured(
                step.series.start_layer, BlockMeans((len(QUANTITIES), ranks)), BlockMeans((ranks, layers))
            )
        into.seen[step.series] = into.seen.get(step.series, 0) + 1
        if into.seen[step.series] <= warmup or not step.ended.all() or (step.step_flags & StepFlag.ABORTED).any():
            continue
        if phase is not None and not (step.phase == phase).all():
            continue
        sums = (step.duration_ns, *(each.sum(axis=1) for each in (step.stall_ns, step.slack_ns, step.transfer_ns)))
        into.by_rank.add(np.stack(sums).astype(np.float64))
        into.stall.add(step.stall_ns)
    return measured


def _series(name: SeriesName, a: Measured, b: Measured) -> SeriesDifference:
    ranks = _differences(a, b)
    a_mean, b_mean = a.by_rank.mean(), b.by_rank.mean()
    return SeriesDifference(
        series=name,
        a_steps=a.by_rank.steps,
        b_steps=b.by_rank.steps,
        a_block_steps=a.by_rank.block_steps,
        b_block_steps=b.by_rank.block_steps,
        a_stall_ratio=tuple((a_mean[1] / np.maximum(1.0, a_mean[0])).tolist()),
        b_stall_ratio=tuple((b_mean[1] / np.maximum(1.0, b_mean[0])).tolist()),
        ranks=tuple(one for one in ranks if one.layer is None),
        layers=tuple(one for one in ranks if one.layer is not None),
    )


def _differences(a: Measured, b: Measured) -> list[Difference]:
    found: list[Difference] = []
    by_rank_a, by_rank_b = a.by_rank.means(), b.by_rank.means()
    layers_a, layers_b = a.stall.means(), b.stall.means()
    enough = min(len(by_rank_a), len(by_rank_b)) >= FEWEST
    mean_a, mean_b = a.by_rank.mean(), b.by_rank.mean()
    for rank in range(by_rank_a.shape[2]):
        for index, quantity in enumerate(QUANTITIES):
            compared = compare(by_rank_a[:, index, rank], by_rank_b[:, index, rank])
            means = float(mean_a[index, rank]), float(mean_b[index, rank])
            found.append(Difference(quantity, rank, None, *means, compared.shift, compared.p, Change.UNKNOWN))
    stall_a, stall_b = a.stall.mean(), b.stall.mean()
    for rank in range(layers_a.shape[1]):
        for position in range(min(layers_a.shape[2], layers_b.shape[2])):
            means = float(stall_a[rank, position]), float(stall_b[rank, position])
            if not any(means):
                continue  # its source, or hidden in both
            compared = compare(layers_a[:, rank, position], layers_b[:, rank, position])
            layer = a.start_layer + position
            found.append(Difference("stall", rank, layer, *means, compared.shift, compared.p, Change.UNKNOWN))
    corrected = holm(np.array([one.p for one in found])) if found else np.zeros(0)
    return [_judged(one, float(p), enough=enough) for one, p in zip(found, corrected, strict=True)]


def _judged(one: Difference, p: float, *, enough: bool) -> Difference:
    least = max(LEAST_SHARE * max(one.a_ns, one.b_ns), LEAST_NS if one.layer is None else LEAST_NS / 10)
    if not enough:
        change = Change.UNKNOWN
    elif p >= ALPHA or abs(one.shift_ns) < least:
        change = Change.SAME
    else:
        change = Change.WORSE if (one.shift_ns > 0) == _WORSE_WHEN_HIGHER[one.quantity] else Change.BETTER
    return Difference(one.quantity, one.rank, one.layer, one.a_ns, one.b_ns, one.shift_ns, p, change)
