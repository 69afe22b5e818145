"""The page: what is wrong, who, since when, how sure, why, what to do, and what that would save.

Every view that shows a whole diagnosis draws these lines: ``swtrace diagnose`` and the terminal.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from swtrace import units
from swtrace.diagnosis.diagnosis import Diagnosis, Trouble
from swtrace.diagnosis.finding import NS_PER_S, Finding, Level
from swtrace.ledger.facts import SeriesFacts, SeriesKey
from swtrace.ledger.planning.repair import Part
from swtrace.trace.identity import RankKey

MARKS = {Level.GOOD: "✓", Level.NOTE: "·", Level.WARNING: "▲", Level.BAD: "■"}
_WIDEST = 110
"""Columns of text: longer lines are hard to read."""
LABEL_COLUMNS = 10
_NAMED = 4
"""How many ranks or hosts are named."""
_SURE = ((0.95, "very likely"), (0.8, "likely"), (0.0, "possible"))
_DAY_NS = 24 * 3600 * NS_PER_S


class Style(Enum):
    """How a line stands out."""

    HEADING = "heading"
    TEXT = "text"
    DIM = "dim"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the page."""

    text: str = ""
    style: Style = Style.TEXT
    level: Level | None = None
    """The line begins with the mark of this level."""
    label: str = ""

    @property
    def indent(self) -> int:
        """How many columns are before the text, for mark and label."""
        return 2 if self.style is Style.HEADING or self.level is not None else 2 + LABEL_COLUMNS


def lines(diagnosis: Diagnosis, width: int) -> list[Line]:
    """Return the page, at most ``width`` columns wide."""
    page = _Page(diagnosis)
    return [line for each in page.paragraphs() for line in _wrapped(each, min(width, _WIDEST))]


def who(finding: Finding, diagnosis: Diagnosis, run_id: str | None) -> str:
    """Return the ranks of a finding with their hosts and processes, and its layer."""
    known = {rank.key: rank.identity for rank in diagnosis.observation.ranks}
    named = []
    for number in finding.ranks[:_NAMED]:
        identity = None if run_id is None else known.get(RankKey(run_id, number))
        pod = "" if identity is None else identity.workload.k8s_pod_name
        where = "" if identity is None else f" (pid {identity.pid} {f'in pod {pod} ' * bool(pod)}on {identity.host})"
        named.append(f"rank {number}{where}")
    if len(finding.ranks) > _NAMED:
        named.append(f"and {len(finding.ranks) - _NAMED} more")
    if finding.layer is not None:
        named.append(f"layer {finding.layer}")
    return ", ".join(named)


def since(finding: Finding, now_ns: int) -> str:
    """Return since when a finding is true: the local time, how long before ``now_ns``, and the step."""
    step = "" if finding.since_step is None else f"step {finding.since_step:,}"
    if not finding.since_ns:
        return step
    ago_ns = now_ns - finding.since_ns
    today = 0 <= ago_ns < _DAY_NS
    at = time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", time.localtime(finding.since_ns / NS_PER_S))
    ago = f" ({units.age(ago_ns)} ago)" if ago_ns >= 0 else ""
    return f"{at}{ago}{step and f', {step}'}"


def certainty(finding: Finding) -> str:
    """Return how sure a finding is, in words and as a number."""
    if finding.confidence >= 1:
        return "observed"
    word = next(word for least, word in _SURE if finding.confidence >= least)
    # Never 100 %: what was not observed is not certain.
    return f"{word} ({min(99.9, 100 * finding.confidence):.3g} %)"


def gain(finding: Finding) -> str:
    """Return what a repair would save; empty if that is unknown."""
    saving = finding.saving
    if saving is None:
        return ""
    shares = units.ranged((saving.share, saving.low, saving.high), units.ratio)
    if finding.repair is not None and finding.repair.part is Part.CHANNEL:
        return f"transfers that take no time would save {shares} of step time, which is the most that is possible"
    return f"repairing this saves {shares} of step time"


class _Page:
    def __init__(self, diagnosis: Diagnosis) -> None:
        self._diagnosis = diagnosis
        keys = list(diagnosis.series)
        self._several_runs = len({key.run_id for key in keys}) > 1
        self._several_series = len(keys) > 1

    def paragraphs(self) -> Iterator[Line]:
        troubles = self._diagnosis.troubles
        if not troubles:
            good = self._diagnosis.judged
            yield Line(self._diagnosis.answer, Style.HEADING, Level.GOOD if good else Level.NOTE)
            yield Line()
        for trouble in troubles:
            yield from self._trouble(trouble)
            yield Line()
        yield from self._foot()

    def _trouble(self, trouble: Trouble) -> Iterator[Line]:
        finding = trouble.finding
        yield Line(self._prefix(trouble.keys) + finding.sentence, Style.HEADING, trouble.level)
        for label, text in (
            ("who", who(finding, self._diagnosis, trouble.run_id)),
            ("since", since(finding, self._diagnosis.taken_ns)),
            ("how sure", certainty(finding)),
        ):
            if text:
                yield Line(text, label=label)
        yield from _listed("evidence", finding.evidence)
        if finding.advice:
            yield Line(finding.advice, label="to do")
        if gain(finding):
            yield Line(gain(finding), label="gain")
        yield from _listed("shows as", [_brief(effect.sentence) for effect in trouble.effects], Style.DIM)

    def _prefix(self, keys: Sequence[SeriesKey]) -> str:
        """Return the run and the series of a finding, where there are several."""
        if not keys:
            return ""
        run = f"run {keys[0].run_id}" if self._several_runs else ""
        names = ", ".join(dict.fromkeys(_named(key) for key in keys)) if self._several_series else ""
        both = ", ".join(filter(None, (run, names)))
        return both and f"{both}: "

    def _foot(self) -> Iterator[Line]:
        """Yield what was looked at, and what the figures leave out."""
        seen, taken_ns = self._diagnosis.observation, self._diagnosis.taken_ns
        notes = [
            self._prefix([key]) + finding.sentence
            for key, said in self._diagnosis.series.items()
            for finding in said.findings
            if finding.level is Level.NOTE and not finding.consequence_of and finding is not said.headline
        ]
        yield from _listed("notes", [_brief(note) for note in notes], Style.DIM)
        runs = dict.fromkeys(rank.identity.run_id for rank in seen.ranks)
        if not runs:
            return
        hosts = list(dict.fromkeys(rank.identity.host for rank in seen.ranks))
        where = ", ".join(hosts) if len(hosts) <= _NAMED else units.counted(len(hosts), "host")
        facts = [each for each in seen.facts.series if each.key in self._diagnosis.series]
        parts = (
            units.listed("run", list(runs)),
            f"{units.counted(len(seen.ranks), 'rank')} on {where}",
            ", ".join(map(_covered, facts)),
            time.strftime("until %Y-%m-%d %H:%M:%S", time.localtime(taken_ns / NS_PER_S)) if taken_ns else "",
            f"read from {', '.join(origin.name for origin in seen.origins)}",
        )
        yield Line("; ".join(filter(None, parts)), Style.DIM, label="looked at")


def _covered(facts: SeriesFacts) -> str:
    info = facts.ranks[0].info
    steps = f"the last {units.counted(facts.steps, 'step')}" if facts.steps else "no step"
    return f"{steps} of {facts.key.name} ({info.extent}, {info.sharing})"


def _named(key: SeriesKey) -> str:
    return key.name if not key.start_layer else f"{key.name} from layer {key.start_layer}"


def _listed(label: str, texts: Sequence[str], style: Style = Style.TEXT) -> Iterator[Line]:
    """Yield texts as bullets, if there are several; the first has the label."""
    several = len(texts) > 1
    for number, text in enumerate(dict.fromkeys(texts)):
        yield Line(f"· {text}" if several else text, style, label="" if number else label)


def _brief(text: str) -> str:
    """Return the first sentence of a text, without what is in brackets."""
    first = re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]
    return re.sub(r" \((?!\d+\))[^()]*\)", "", first)


def _wrapped(line: Line, width: int) -> Iterator[Line]:
    if not line.text:
        yield line
        return
    hanging = "  " if line.text.startswith("· ") else ""
    rows = textwrap.wrap(line.text, max(20, width - line.indent), subsequent_indent=hanging, break_on_hyphens=False)
    yield Line(rows[0], line.style, line.level, line.label)
    for row in rows[1:]:
        yield Line(row, line.style)
