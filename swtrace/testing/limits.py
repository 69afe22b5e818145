"""The limits of a marker, the check against them, and the failure message.

Baselines are what tests measured last time. They are in one JSON file, which belongs under version control.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from swtrace import units
from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.rules.plan import beside_plan
from swtrace.errors import SettingsError
from swtrace.ledger.comparison import Comparison, compare
from swtrace.ledger.facts import CAUSES, Recent, SeriesFacts, SeriesKey, Totals
from swtrace.recording.selected import SelectedSteps
from swtrace.selection import Selection, unknown_name
from swtrace.testing.tracing import Tracing
from swtrace.trace.identity import RankKey
from swtrace.units import milliseconds

WORST_LAYERS = 8
_FORMAT = 1
"""Format of the baseline file."""
_MOST_DIGITS = 9
RATIO_FLOOR = 0.005
"""A change of at most half a percent of the step time is never a regression."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The arguments of ``@pytest.mark.swtrace``. Each limit holds for every rank of every selected series."""

    min_efficiency: float | None = None
    max_stall_ratio: float | None = None
    min_on_time_rate: float | None = None
    max_stall_seconds: float | None = None
    """Per step."""
    within_plan: bool = False
    """Whether step time and stall ratio must not exceed the range of the plan (``SWTRACE_PLAN``)."""
    min_steps: int = 1
    """Fewer finished steps fail the test: a test that measured nothing must not pass."""
    baseline: bool = False
    """Compare with the baseline that ``--swtrace-save-baseline`` saved."""
    tolerance: float | None = None
    """How much worse than the baseline is accepted: 0.1 is 10 %."""
    selection: Selection = field(default_factory=Selection)
    """Which waits the limits are about. Its fields are arguments of the marker."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Read a marker's arguments.

        Raises:
            SettingsError: An argument does not exist, or its value is not allowed.
        """
        chosen = {field.name: arguments[field.name] for field in fields(Selection) if field.name in arguments}
        limits = {name: value for name, value in arguments.items() if name not in chosen}
        for name, value in limits.items():
            if name not in _LIMITS:
                raise SettingsError(f"@pytest.mark.swtrace has no argument {unknown_name(name, _LIMITS)}")
            must_be, fits = _LIMITS[name]
            if not fits(value):
                raise SettingsError(f"@pytest.mark.swtrace: {name}={value!r}: must be {must_be}")
        if "tolerance" in limits and not limits.get("baseline"):
            raise SettingsError("@pytest.mark.swtrace: tolerance has no effect without baseline=True")
        try:
            return cls(**limits, selection=Selection(**chosen))
        except SettingsError as error:
            raise SettingsError(f"@pytest.mark.swtrace: {error}") from None

    def __str__(self) -> str:
        """Return the marker's arguments: limits, then selection."""
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
    "within_plan": ("True or False", lambda value: isinstance(value, bool)),
    "min_steps": ("a number of steps from 1", lambda value: _number(value) and isinstance(value, int) and value >= 1),
    "baseline": ("True or False", lambda value: isinstance(value, bool)),
    "tolerance": ("a number from 0: 0.1 is 10 %", lambda value: value is None or _number(value)),
}
"""Allowed values of each limit. A limit of None or NaN would always be met."""
_UNLIMITED = Limits()
_OF_SHARED = ("min_efficiency", "max_stall_ratio", "min_on_time_rate", "max_stall_seconds", "baseline")
"""Limits that an observed series would meet by having no waits."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The values that a baseline stores for one rank of one series."""

    steps: int
    stall_ratio: float | None
    stall_seconds: float
    """Per step."""
    efficiency: float | None
    on_time_rate: float | None

    @classmethod
    def of(cls, recent: Recent) -> Self:
        """Return the values to store."""
        return cls(
            steps=recent.steps,
            stall_ratio=recent.stall_ratio,
            stall_seconds=recent.stall_ns * 1e-9 / max(1, recent.steps),
            efficiency=recent.efficiency,
            on_time_rate=recent.on_time_rate,
        )

    def worse(self, now: Recent, tolerance: float) -> str:
        """Describe how ``now`` is worse; return an empty string if it is not."""
        ratio, efficiency = now.stall_ratio, now.efficiency
        if ratio is not None and self.stall_ratio is not None:
            allowed = self.stall_ratio * (1 + tolerance) + RATIO_FLOOR
            if ratio > allowed:
                compared = _value_and_limit(ratio, "above", allowed)
                return f"stall ratio {compared} ({_baseline(self.stall_ratio, tolerance)})"
            if efficiency is not None and self.efficiency is not None and ratio > RATIO_FLOOR:
                least = self.efficiency * (1 - tolerance)
                if efficiency < least:
                    compared = _value_and_limit(efficiency, "below", least)
                    return f"efficiency {compared} ({_baseline(self.efficiency, tolerance)})"
        return ""


def _baseline(baseline: float, tolerance: float) -> str:
    return f"baseline {units.ratio(baseline)}, tolerance {units.ratio(tolerance)}"


Baseline = dict[str, Measurement]
"""By :func:`place`."""


def place(key: SeriesKey, rank: RankKey) -> str:
    """Return a name for a rank of a series that is the same in every run."""
    return f"{key.name}@{key.start_layer}/rank {rank.rank}"


def measured(tracing: Tracing, limits: Limits) -> dict[tuple[SeriesKey, RankKey], Recent]:
    """Return the sums over a marker's selection, by series and rank."""
    return tracing.sums_by_rank(**asdict(limits.selection))


def judge(tracing: Tracing, limits: Limits, baseline: Baseline | None = None, tolerance: float = 0.0) -> str:
    """Return the failure message for a marker's limits; an empty string if they are met.

    Its first line says the most, because pytest's summary shows only the beginning of that line.
    """
    sums = measured(tracing, limits)
    steps = min((recent.steps for recent in sums.values()), default=0)
    if steps < limits.min_steps:
        return _nothing_measured(tracing, limits, steps)
    compared = _compared(tracing, limits) if limits.within_plan else {}
    unknown = _uncheckable(tracing, limits, sums) or _without_plan(limits, sums, compared)
    if unknown:
        return unknown
    broken: dict[tuple[SeriesKey, RankKey], list[str]] = {}
    for at, recent in sums.items():
        found = _broken(limits, recent) + _above_plan(compared.get(at[0]), at[1])
        known = (baseline or {}).get(place(*at))
        if known is not None and (worse := known.worse(recent, tolerance)):
            found.append(worse)
        if found:
            broken[at] = found
    return _report(tracing, limits, sums, broken) if broken else ""


def _uncheckable(tracing: Tracing, limits: Limits, sums: Mapping[tuple[SeriesKey, RankKey], Recent]) -> str:
    """Return why the recorded steps do not say whether limits are met; empty if they do."""
    shared = {series.key for series in tracing.facts().series if series.shared}
    asked_of_shared = [name for name in _OF_SHARED if getattr(limits, name) is not getattr(_UNLIMITED, name)]
    if asked_of_shared and not any(key in shared for key, _ in sums):
        names = ", ".join(dict.fromkeys(key.name for key, _ in sums))
        what = " and ".join(asked_of_shared)
        return f"{what} cannot be checked: nothing is shared, {names} is only observed (SWTRACE_SHARE=none)"
    unjudged = _unjudged(limits, sums.values())
    if unjudged:
        asked = f" matching {limits.selection}" if str(limits.selection) else ""
        return (
            f"{' and '.join(unjudged)} cannot be checked: no recorded step{asked} has such a value. "
            "For example, a rank never waits for a layer that it stores itself"
        )
    lost = tracing.lost
    if lost:
        return (
            f"{units.counted(lost, 'record')} {'was' if lost == 1 else 'were'} lost before being read, so the limits "
            "cannot be checked: set a larger ini option swtrace_ring_records, or run fewer steps"
        )
    return ""


def _without_plan(
    limits: Limits, sums: Mapping[tuple[SeriesKey, RankKey], Recent], compared: Mapping[SeriesKey, Comparison]
) -> str:
    """Return why a series cannot be compared with its plan; empty if all can, or none must be."""
    for key in dict.fromkeys(key for key, _ in sums) if limits.within_plan else ():
        comparison = compared.get(key)
        if comparison is None:
            return f"series {key.name!r} has no plan to be within: set SWTRACE_PLAN, and see the rank's log"
        if comparison.differs or comparison.step_ns is None:
            return f"series {key.name!r} cannot be compared with the plan: {beside_plan(comparison).sentence}"
    return ""


def _compared(tracing: Tracing, limits: Limits) -> dict[SeriesKey, Comparison]:
    """Return each series with a plan, compared with it over the selected steps."""
    facts = _selected(tracing, limits).facts(tracing.facts())
    return {series.key: compared for series in facts.series if (compared := compare(series)) is not None}


def _selected(tracing: Tracing, limits: Limits) -> SelectedSteps:
    """Return the selected steps, whole and on all ranks, even if the limits are about one rank or layer."""
    selected = SelectedSteps(replace(limits.selection, rank=None, layer=None))
    for _ in selected.among(tracing.steps()):
        pass
    return selected


def _above_plan(comparison: Comparison | None, rank: RankKey) -> list[str]:
    """Return that a series does not keep to its plan, for the rank that the figures are most about."""
    if comparison is None or not comparison.worse or comparison.rank != rank.rank:
        return []
    return [f"{' and '.join(comparison.worse)} above the plan ({comparison.sentence.removesuffix('.')})"]


def _unjudged(limits: Limits, sums: Collection[Recent]) -> list[str]:
    """Return the limits that no rank has a value for. For example, a rank never waits for its own layer."""
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
        found.append(f"stall ratio {_value_and_limit(ratio, 'above', limits.max_stall_ratio)}")
    if limits.max_stall_seconds is not None and stall > limits.max_stall_seconds:
        found.append(f"stall per step {_value_and_limit(stall, 'above', limits.max_stall_seconds, 1e3, 'ms', 2)}")
    if limits.min_efficiency is not None and efficiency is not None and efficiency < limits.min_efficiency:
        found.append(f"efficiency {_value_and_limit(efficiency, 'below', limits.min_efficiency)}")
    if limits.min_on_time_rate is not None and on_time is not None and on_time < limits.min_on_time_rate:
        found.append(f"on-time rate {_value_and_limit(on_time, 'below', limits.min_on_time_rate)}")
    return found


def _value_and_limit(
    value: float, side: str, limit: float, factor: float = 100.0, unit: str = "%", digits: int = 1
) -> str:
    """Return a value and the limit that it breaks, with enough digits to tell them apart."""
    while digits < _MOST_DIGITS and (
        f"{value * factor:.{digits}f}" == f"{limit * factor:.{digits}f}"
        or abs(round(limit * factor, digits) - limit * factor) > limit * factor * 1e-6
    ):
        digits += 1
    return f"{value * factor:.{digits}f} {unit} is {side} {limit * factor:.{digits}f} {unit}"


def _nothing_measured(tracing: Tracing, limits: Limits, steps: int) -> str:
    untimed = max((_untimed(rank.totals) for series in tracing.facts().series for rank in series.ranks), default=0)
    if steps:
        timed = f"{units.counted(steps, 'timed step')} (and {untimed} untimed)" if untimed else ""
        return f"only {timed or units.counted(steps, 'step')} finished, fewer than min_steps={limits.min_steps}"
    refused = tracing.refused()
    if refused:
        return "nothing is shared: " + "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    names = sorted({series.key.name for series in tracing.facts().series})
    if names:
        matches = f" matches {limits.selection}" if str(limits.selection) else ""
        why = f": {units.counted(untimed, 'step')} {'is' if untimed == 1 else 'are'} untimed" if untimed else ""
        return f"no {'timed' if untimed else 'finished'} step{matches}{why}; recorded: {', '.join(names)}"
    return (
        "no series recorded anything. Create the series and call post_process() inside the test, in this process or in "
        "one that inherits its environment (SWTRACE=1, SWTRACE_DIR). A fork server started earlier does not pass it "
        "on: set swtrace.environment there"
    )


def _untimed(totals: Totals) -> int:
    return sum(totals.untimed_steps.values())


def _report(
    tracing: Tracing,
    limits: Limits,
    sums: Mapping[tuple[SeriesKey, RankKey], Recent],
    broken: Mapping[tuple[SeriesKey, RankKey], list[str]],
) -> str:
    worst = max(broken, key=lambda at: sums[at].stall_ratio or 0.0)
    reasons = sum(map(len, broken.values()))
    others = f"; {units.counted(reasons - 1, 'more broken limit')} below" if reasons > 1 else ""
    selected = _selected(tracing, limits)
    seen = tracing.observe()
    known = {series.key: series for series in selected.facts(seen.facts).series}
    lines = [f"{broken[worst][0]} on rank {_named(known, *worst)} of {worst[0].name}{others}"]
    for key in dict.fromkeys(key for key, _ in broken):
        ranks = {rank: recent for (series, rank), recent in sums.items() if series == key}
        steps = max(recent.steps for recent in ranks.values())
        warmup = limits.selection.warmup
        left_out = f" after {units.counted(warmup, 'warm-up step')}" if warmup else ""
        lines += ["", f"series {key.name}, {units.counted(steps, 'step')}{left_out}"]
        rows = [("rank", "step", "stall", "stall ratio", "efficiency", "on time", "broken limits")]
        for rank, recent in ranks.items():
            count = max(1, recent.steps)
            rows.append(
                (
                    _named(known, key, rank),
                    milliseconds(recent.step_ns / count),
                    milliseconds(recent.stall_ns / count),
                    units.ratio(recent.stall_ratio),
                    units.ratio(recent.efficiency),
                    units.ratio(recent.on_time_rate),
                    "; ".join(broken.get((key, rank), ())),
                )
            )
        lines += _columns(rows)
        lines += _layers(tracing, limits, key, {rank: recent.steps for rank, recent in ranks.items()})
        facts = known.get(key)
        if facts is not None:
            lines += ["", f"verdict on {'this step' if facts.steps == 1 else f'these {facts.steps} steps'}"]
            for finding in verdict(facts, selected.history(key), seen.ranks).findings[:4]:
                lines += [f"- {finding.sentence}", *([f"  {finding.advice}"] if finding.advice else [])]
    return "\n".join(lines)


def _named(known: Mapping[SeriesKey, SeriesFacts], key: SeriesKey, rank: RankKey) -> str:
    return known[key].named(rank.rank) if key in known else str(rank.rank)


def _layers(tracing: Tracing, limits: Limits, key: SeriesKey, steps: Mapping[RankKey, int]) -> list[str]:
    """Return a table of the layers that stall most, each with its largest cause. ``steps`` counts each rank's."""
    picked = [each for each in limits.selection.pick(tracing.steps()) if each.step.series == key]
    stall = np.asarray(sum(np.where(each.cells, each.step.stall_ns, 0) for each in picked))
    cause = np.asarray(sum(np.where(each.cells, each.step.cause_ns, 0) for each in picked))
    if not stall.any():
        return []
    last = picked[-1].step
    rows = [("rank", "layer", "source", "stall", "of rank's stall", "largest cause")]
    for at in np.argsort(stall, axis=None)[::-1][:WORST_LAYERS].tolist():
        rank, position = divmod(at, stall.shape[1])
        if not stall[rank, position]:
            break
        why = CAUSES[int(cause[:, rank, position].argmax())]
        rows.append(
            (
                str(last.ranks[rank].rank),
                str(last.layers[position]),
                str(last.ranks[int(last.source[position])].rank),
                milliseconds(stall[rank, position] / max(1, steps.get(last.ranks[rank], 0))),
                units.ratio(stall[rank, position] / max(1, stall[rank].sum())),
                units.words(why),
            )
        )
    return ["", "layers that stall most, mean per step", *_columns(rows)]


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
    """Return the baselines by test; an empty dict if there is no file.

    Raises:
        SettingsError: The file is not a baseline file, or has another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        document = json.loads(text)
        if document["swtrace_baseline"] != _FORMAT:
            raise SettingsError(f"{path}: baseline format {document['swtrace_baseline']}: must be {_FORMAT}")
        return {test: decode_baseline(places) for test, places in document["tests"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is not a baseline file of swtrace: {error!r}") from error


def save_baselines(path: Path, fresh: dict[str, Baseline]) -> None:
    """Write baselines. Those of tests that did not run are kept."""
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
    """Return the baseline that :func:`encode_baseline` encoded."""
    return {place: Measurement(**values) for place, values in places.items()}
