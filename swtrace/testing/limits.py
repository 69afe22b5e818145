"""What a marker asks for, whether it was met, and the words when it was not.

Baselines are what tests measured last time, in one JSON file that belongs under version control.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from swtrace import units
from swtrace.errors import SettingsError
from swtrace.ledger.facts import CAUSES, Recent, SeriesKey, Totals
from swtrace.ledger.verdict import verdict
from swtrace.selection import Selection
from swtrace.testing.tracing import Tracing
from swtrace.trace.identity import RankKey
from swtrace.units import milliseconds

WORST_LAYERS = 8
_FORMAT = 1
"""Of the file of baselines."""
_MOST_DIGITS = 9
RATIO_FLOOR = 0.005
"""Half a per cent of the step time more or less is never a regression."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The arguments of ``@pytest.mark.swtrace``. Each limit holds for every rank of every series meant."""

    min_efficiency: float | None = None
    max_stall_ratio: float | None = None
    min_on_time_rate: float | None = None
    max_stall_seconds: float | None = None
    """Per step."""
    min_steps: int = 1
    """Fewer finished steps than this are a failure: a test that measured nothing must not pass."""
    baseline: bool = False
    """Compare with what was saved by ``--swtrace-save-baseline``."""
    tolerance: float | None = None
    """How much worse than the baseline is still accepted; 0.1: 10 %."""
    selection: Selection = field(default_factory=Selection)
    """What is meant; a marker has its fields as arguments."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Read a marker's arguments.

        Raises:
            SettingsError: one of them does not exist, or has a value that says nothing.
        """
        chosen = {field.name: arguments[field.name] for field in fields(Selection) if field.name in arguments}
        limits = {name: value for name, value in arguments.items() if name not in chosen}
        for name, value in limits.items():
            if name not in _LIMITS:
                known = sorted((*_LIMITS, *(field.name for field in fields(Selection))))
                raise SettingsError(f"@pytest.mark.swtrace has no argument {name!r}: it has {', '.join(known)}")
            must_be, fits = _LIMITS[name]
            if not fits(value):
                raise SettingsError(f"@pytest.mark.swtrace: {name}={value!r}: must be {must_be}")
        try:
            return cls(**limits, selection=Selection(**chosen))
        except SettingsError as error:
            raise SettingsError(f"@pytest.mark.swtrace: {error}") from None

    def __str__(self) -> str:
        """Return the marker's arguments: limits, then what they are about."""
        given = {name: getattr(self, name) for name in _LIMITS}
        defaults = {field.name: field.default for field in fields(self)}
        limits = (f"{name}={value!r}" for name, value in given.items() if value != defaults[name])
        return ", ".join(filter(None, (*limits, str(self.selection))))


def _number(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most and value < math.inf


_RATIO = ("a ratio from 0 to 1", lambda value: _number(value, 1.0))
_LIMITS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "min_efficiency": _RATIO,
    "max_stall_ratio": _RATIO,
    "min_on_time_rate": _RATIO,
    "max_stall_seconds": ("a number of seconds from 0", _number),
    "min_steps": ("a number of steps from 1", lambda value: _number(value) and isinstance(value, int) and value >= 1),
    "baseline": ("True or False", lambda value: isinstance(value, bool)),
    "tolerance": ("a number from 0: 0.1 is 10 %", lambda value: value is None or _number(value)),
}
"""What each limit must be. One of None or NaN would be met by anything."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a baseline keeps of one rank of one series."""

    steps: int
    stall_ratio: float | None
    stall_seconds: float
    """Per step."""
    efficiency: float | None
    on_time_rate: float | None

    @classmethod
    def of(cls, recent: Recent) -> Self:
        """Return what is kept of sums."""
        return cls(
            steps=recent.steps,
            stall_ratio=recent.stall_ratio,
            stall_seconds=recent.stall_ns * 1e-9 / max(1, recent.steps),
            efficiency=recent.efficiency,
            on_time_rate=recent.on_time_rate,
        )

    def worse(self, now: Recent, tolerance: float) -> str:
        """Say in what ``now`` is worse; empty if in nothing."""
        ratio, efficiency = now.stall_ratio, now.efficiency
        if ratio is not None and self.stall_ratio is not None:
            allowed = self.stall_ratio * (1 + tolerance) + RATIO_FLOOR
            if ratio > allowed:
                baseline = units.ratio(self.stall_ratio)
                return f"stall ratio {units.ratio(ratio)}, baseline {baseline} (+{units.ratio(tolerance)})"
            if efficiency is not None and self.efficiency is not None and ratio > RATIO_FLOOR:
                least = self.efficiency * (1 - tolerance)
                if efficiency < least:
                    baseline = units.ratio(self.efficiency)
                    return f"efficiency {units.ratio(efficiency)}, baseline {baseline} (-{units.ratio(tolerance)})"
        return ""


Baseline = dict[str, Measurement]
"""By :func:`place`."""


def place(key: SeriesKey, rank: RankKey) -> str:
    """Return the name of a rank of a series that is the same in every run."""
    return f"{key.name}@{key.start_layer}/rank {rank.rank}"


def measured(tracing: Tracing, limits: Limits) -> dict[tuple[SeriesKey, RankKey], Recent]:
    """Return the sums of what a marker means, by series and rank."""
    return tracing.sums_by_rank(**asdict(limits.selection))


def judge(tracing: Tracing, limits: Limits, baseline: Baseline | None = None, tolerance: float = 0.0) -> str:
    """Return why a marker's limits are not met, as a text for people; empty if they are."""
    sums = measured(tracing, limits)
    steps = min((recent.steps for recent in sums.values()), default=0)
    if steps < limits.min_steps:
        return _nothing(tracing, limits, steps)
    unjudged = _unjudged(limits, sums.values())
    if unjudged:
        return f"nothing that was recorded says anything about {' or '.join(unjudged)} of swtrace({limits})"
    lost = tracing.lost
    if lost:
        return (
            f"{lost} records were lost before they could be read, so that nothing can be said: give the rings more "
            "room with the ini option swtrace_ring_records, or take fewer steps"
        )
    broken: dict[tuple[SeriesKey, RankKey], list[str]] = {}
    for at, recent in sums.items():
        found = _broken(limits, recent)
        known = (baseline or {}).get(place(*at))
        if known is not None and (worse := known.worse(recent, tolerance)):
            found.append(worse)
        if found:
            broken[at] = found
    return _report(tracing, limits, sums, broken) if broken else ""


def _unjudged(limits: Limits, sums: Collection[Recent]) -> list[str]:
    """Return the limits that no rank has a value for: of a rank's own layer, say, nothing was ever waited for."""
    values: Mapping[str, list[float | None]] = {
        "max_stall_ratio": [recent.stall_ratio for recent in sums],
        "min_efficiency": [recent.efficiency for recent in sums],
        "min_on_time_rate": [recent.on_time_rate for recent in sums],
        "max_stall_seconds": [recent.waits or None for recent in sums],
    }
    return [
        name
        for name, of_ranks in values.items()
        if getattr(limits, name) is not None and all(value is None for value in of_ranks)
    ]


def _broken(limits: Limits, recent: Recent) -> list[str]:
    found = []
    ratio, efficiency, on_time = recent.stall_ratio, recent.efficiency, recent.on_time_rate
    stall = recent.stall_ns * 1e-9 / max(1, recent.steps)
    if limits.max_stall_ratio is not None and ratio is not None and ratio > limits.max_stall_ratio:
        found.append(f"stall ratio {_beside(ratio, '>', limits.max_stall_ratio)}")
    if limits.max_stall_seconds is not None and stall > limits.max_stall_seconds:
        found.append(f"stall {_beside(stall, '>', limits.max_stall_seconds, 1e3, 'ms', 2)} per step")
    if limits.min_efficiency is not None and efficiency is not None and efficiency < limits.min_efficiency:
        found.append(f"efficiency {_beside(efficiency, '<', limits.min_efficiency)}")
    if limits.min_on_time_rate is not None and on_time is not None and on_time < limits.min_on_time_rate:
        found.append(f"on time {_beside(on_time, '<', limits.min_on_time_rate)}")
    return found


def _beside(value: float, sign: str, limit: float, factor: float = 100.0, unit: str = "%", digits: int = 1) -> str:
    """Return a value beside the limit that it broke, with as many digits as it takes to see that."""
    while digits < _MOST_DIGITS and (
        f"{value * factor:.{digits}f}" == f"{limit * factor:.{digits}f}"
        or abs(round(limit * factor, digits) - limit * factor) > limit * factor * 1e-6
    ):
        digits += 1
    return f"{value * factor:.{digits}f} {unit} {sign} {limit * factor:.{digits}f} {unit}"


def _nothing(tracing: Tracing, limits: Limits, steps: int) -> str:
    untimed = max((_untimed(rank.totals) for series in tracing.facts().series for rank in series.ranks), default=0)
    if steps:
        beside = f" with instants (and {untimed} without)" if untimed else ""
        were = "step{} was" if steps == 1 else "steps{} were"
        return f"only {steps} finished {were.format(beside)} recorded, {limits.min_steps} are needed"
    refused = tracing.refused()
    if refused:
        return "nothing is shared: " + "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    names = sorted({series.key.name for series in tracing.facts().series})
    if names:
        without = "1 step has" if untimed == 1 else f"{untimed} steps have"
        why = f"{without} no instants" if untimed else "its selection leaves everything out"
        return f"no finished step matches swtrace({limits}): {why}; recorded: {', '.join(names)}"
    return (
        "no series recorded anything. Was it post-processed inside the test, by this process or one that inherits its "
        "environment (SWTRACE=1, SWTRACE_DIR)? Processes of an older fork server do not: hand them "
        "swtrace.environment"
    )


def _untimed(totals: Totals) -> int:
    return sum(totals.untimed_steps.values())


def _report(
    tracing: Tracing,
    limits: Limits,
    sums: Mapping[tuple[SeriesKey, RankKey], Recent],
    broken: Mapping[tuple[SeriesKey, RankKey], list[str]],
) -> str:
    lines = [f"prefetch is not as swtrace({limits}) asks for"]
    for key in dict.fromkeys(key for key, _ in broken):
        ranks = {rank: recent for (series, rank), recent in sums.items() if series == key}
        steps = max(recent.steps for recent in ranks.values())
        left_out = f" after {limits.selection.warmup} of warm-up" if limits.selection.warmup else ""
        lines += ["", f"series {key.name}, {steps} steps{left_out}"]
        rows = [("rank", "step", "stall", "stall ratio", "efficiency", "on time", "")]
        for rank, recent in ranks.items():
            count = max(1, recent.steps)
            rows.append(
                (
                    str(rank.rank),
                    milliseconds(recent.step_ns / count),
                    milliseconds(recent.stall_ns / count),
                    units.ratio(recent.stall_ratio),
                    units.ratio(recent.efficiency),
                    units.ratio(recent.on_time_rate),
                    "; ".join(broken.get((key, rank), ())),
                )
            )
        lines += _columns(rows)
        lines += _layers(tracing, limits, key, steps)
        seen = tracing.observe()
        facts = next((series for series in seen.facts.series if series.key == key), None)
        if facts is not None:
            said = verdict(facts, seen.history[key], seen.died)
            lines += ["", f"over the last {facts.steps} steps:"]
            for finding in said.findings[:4]:
                lines += [f"- {finding.sentence}", *([f"  {finding.advice}"] if finding.advice else [])]
    return "\n".join(lines)


def _layers(tracing: Tracing, limits: Limits, key: SeriesKey, steps: int) -> list[str]:
    """Return the layers that stall most, with what they mostly waited for."""
    picked = [each for each in limits.selection.pick(tracing.steps()) if each.step.series == key]
    stall = np.asarray(sum(np.where(each.cells, each.step.stall_ns, 0) for each in picked))
    cause = np.asarray(sum(np.where(each.cells, each.step.cause_ns, 0) for each in picked))
    if not stall.any():
        return []
    ranks, source = picked[-1].step.ranks, picked[-1].step.source
    rows = [("rank", "layer", "source", "stall", "of the rank's", "mostly")]
    for at in np.argsort(stall, axis=None)[::-1][:WORST_LAYERS].tolist():
        rank, position = divmod(at, stall.shape[1])
        if not stall[rank, position]:
            break
        why = CAUSES[int(cause[:, rank, position].argmax())]
        rows.append(
            (
                str(ranks[rank].rank),
                str(key.start_layer + position),
                str(ranks[int(source[position])].rank),
                milliseconds(stall[rank, position] / max(1, steps)),
                units.ratio(stall[rank, position] / max(1, stall[rank].sum())),
                units.words(why),
            )
        )
    return ["", "layers that stall most, per step", *_columns(rows)]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if index == last else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def load_baselines(path: Path) -> dict[str, Baseline]:
    """Return the baselines by test; none if there is no file.

    Raises:
        SettingsError: the file holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        document = json.loads(text)
        if document["swtrace_baseline"] != _FORMAT:
            raise SettingsError(f"{path}: baseline format {document['swtrace_baseline']}, this swtrace has {_FORMAT}")
        return {test: decode_baseline(places) for test, places in document["tests"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no baseline of swtrace: {error!r}") from error


def save_baselines(path: Path, fresh: dict[str, Baseline]) -> None:
    """Write baselines; those of tests that did not run stay."""
    tests = {**load_baselines(path), **fresh}
    document = {
        "swtrace_baseline": _FORMAT,
        "tests": {test: encode_baseline(tests[test]) for test in sorted(tests)},
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def encode_baseline(baseline: Baseline) -> dict[str, Any]:
    """Return plain values."""
    return {place: asdict(measurement) for place, measurement in sorted(baseline.items())}


def decode_baseline(places: dict[str, Any]) -> Baseline:
    """Return what :func:`encode_baseline` was given."""
    return {place: Measurement(**values) for place, values in places.items()}
