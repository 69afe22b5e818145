"""Apply the rules: the verdict on one series, and the diagnosis of everything that is observed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import NS_PER_S, Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.diagnosis.rules import host_rules, rules
from swtrace.ledger.facts import SeriesFacts, SeriesKey, StepFacts
from swtrace.ledger.planning.repair import Saving, savings
from swtrace.observing.observation import Observation, ObservedRank

_HIDES = ("hidden", "partly_hidden", "stalled")


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about one series: what stopped it, the headline, what its plan says, and the others by level."""

    findings: tuple[Finding, ...]
    """The headline is the first."""

    @property
    def headline(self) -> Finding:
        """What matters most about the series."""
        return self.findings[0]

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max(finding.level for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A finding of something wrong that no other finding explains."""

    finding: Finding
    keys: tuple[SeriesKey, ...]
    """The series in which it was found, about the same ranks; empty if it is about a host."""
    effects: tuple[Finding, ...]
    """What it explains."""

    @property
    def level(self) -> Level:
        """The level of the finding, or of the worst effect."""
        return max(finding.level for finding in (self.finding, *self.effects))

    @property
    def run_id(self) -> str | None:
        """The run, if it is about one."""
        return self.keys[0].run_id if self.keys else self.finding.run_id or None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that the rules find in an observation."""

    observation: Observation
    """What was looked at."""
    series: dict[SeriesKey, Verdict]
    of_hosts: tuple[Finding, ...]
    """Findings that are about no single series."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the most urgent first."""
        every = [*(one for said in self.series.values() for one in said.findings), *self.of_hosts]
        return tuple(sorted(every, key=urgency))

    def unexplained(self) -> Iterator[tuple[SeriesKey | None, Finding]]:
        """Yield what is wrong and no other finding explains, with its series; None if it is about a host."""
        for key, findings in (*((key, said.findings) for key, said in self.series.items()), (None, self.of_hosts)):
            for finding in findings:
                if finding.level >= Level.WARNING and not finding.consequence_of:
                    yield key, finding

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong, the worst first. The same about the same ranks is one trouble, in however many series."""
        found: dict[tuple[str, str, tuple[int, ...]], list[tuple[Finding, SeriesKey | None]]] = {}
        for key, finding in self.unexplained():
            which = finding.kind if key is not None and finding.ranks else finding.sentence
            run_id = finding.run_id if key is None else key.run_id
            found.setdefault((run_id, which, finding.ranks), []).append((finding, key))
        troubles = []
        for each in found.values():
            first, _ = min(each, key=lambda pair: urgency(pair[0]))
            keys = tuple(key for _, key in each if key is not None)
            effects = (one for key in keys for one in self.series[key].findings if one.consequence_of == first.kind)
            troubles.append(Trouble(first, keys, tuple(effects)))
        return tuple(sorted(troubles, key=lambda trouble: (-trouble.level, urgency(trouble.finding))))

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max((finding.level for finding in self.findings), default=Level.GOOD)

    @property
    def judged(self) -> bool:
        """Whether there is anything to say: a series with steps that can be judged, or a finding of something wrong."""
        known = any(said.headline.kind != "nothing" for said in self.series.values())
        return known or self.level >= Level.WARNING

    @property
    def taken_ns(self) -> int:
        """UNIX time of what was looked at, on the host of the rank seen last; 0 if unknown."""
        seen = [rank.ring.taken_ns + rank.unix_offset_ns for rank in self.observation.ranks if rank.unix_offset_ns]
        return max(seen, default=0)

    @property
    def answer(self) -> str:
        """What is wrong, or that nothing is, in one sentence."""
        if self.level >= Level.WARNING:
            return self.troubles[0].finding.sentence
        seen = self.observation
        if not seen.ranks:
            return "There is nothing to diagnose: no rank was found."
        if not self.judged:
            reasons = dict.fromkeys(said.headline.sentence for said in self.series.values())
            return " ".join(("Nothing can be said yet.", *reasons))
        runs = any(rank.ring.alive for rank in seen.ranks)
        facts = [each for each in seen.facts.series if each.key in self.series]
        names = ", ".join(dict.fromkeys(each.key.name for each in facts))
        steps = units.counted(max(each.steps for each in facts), "step")
        ratios = [said.headline.numbers["stall_ratio"] for said in self.series.values() if said.headline.kind in _HIDES]
        stalls = f"stalls take {units.ratio(max(ratios))} of step time" if ratios else "nothing is shared"
        return (
            f"Nothing {'is' if runs else 'was'} wrong: {units.counted(len(seen.ranks), 'rank')} of {names} "
            f"{'run' if runs else 'ran'}, the last {steps} looked at, {stalls}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        seen = self.observation
        return {
            "level": self.level.word,
            "answer": self.answer,
            "judged": self.judged,
            "taken": self.taken_ns / NS_PER_S if self.taken_ns else None,
            "sources": [
                {"name": origin.name, "link": origin.link.value, "detail": origin.detail} for origin in seen.origins
            ],
            "ranks": [
                {
                    "run_id": rank.identity.run_id,
                    "rank": rank.identity.rank,
                    "host": rank.identity.host,
                    "pid": rank.identity.pid,
                    "up": rank.ring.alive,
                    "died": rank.died,
                }
                for rank in seen.ranks
            ],
            "series": [
                {
                    "run_id": facts.key.run_id,
                    "name": facts.key.name,
                    "start_layer": facts.key.start_layer,
                    "group_ranks": list(facts.key.group_ranks),
                    "steps": facts.steps,
                    "level": self.series[facts.key].level.word,
                    "findings": [finding.to_json() for finding in self.series[facts.key].findings],
                }
                for facts in seen.facts.series
                if facts.key in self.series
            ],
            "hosts": [finding.to_json() for finding in self.of_hosts],
        }


def urgency(finding: Finding) -> tuple[float, ...]:
    """Return the key by which findings are sorted: the worst first.

    Of one level, causes stand before consequences, ranks that stand still before slow ones, and then what saves most.
    """
    return (
        -finding.level,
        bool(finding.consequence_of),
        finding.kind not in condition_kinds(),
        -(finding.saving.share if finding.saving else 0.0),
        -finding.confidence,
    )


def verdict(facts: SeriesFacts, steps: Sequence[StepFacts] = (), ranks: Collection[ObservedRank] = ()) -> Verdict:
    """Return the findings about a series.

    Args:
        facts: The series, summed over the last steps.
        steps: Those steps, oldest first (:meth:`Ledger.history`). Without them, findings are about the sums only.
        ranks: The observed ranks, of any run. Without them, no finding is about what ranks are doing now.
    """
    case = Case.of(facts, steps, ranks)
    found = list(_found(case, rules()))
    first = [finding for rule, finding in found if rule.about <= About.PLAN]
    others = [finding for rule, finding in found if rule.about > About.PLAN]
    findings = _explained([*first, *sorted(others, key=lambda finding: -finding.level)], [rule for rule, _ in found])
    return Verdict(findings)


def conditions(facts: SeriesFacts, steps: Sequence[StepFacts], ranks: Collection[ObservedRank]) -> tuple[Finding, ...]:
    """Return what is wrong with a series' ranks now. Unlike a verdict, this takes little time."""
    case = Case.of(facts, steps, ranks)
    return tuple(finding for _, finding in _found(case, (rule for rule in rules() if rule.about is About.CONDITION)))


def of_hosts(observation: Observation) -> tuple[Finding, ...]:
    """Return what is wrong with ranks and rings, whatever their series. This takes little time."""
    return tuple(finding for rule in host_rules() for finding in rule.find(observation))


def diagnose(observation: Observation) -> Diagnosis:
    """Return all findings."""
    said = {}
    for facts in observation.facts.series:
        if facts.ranks:
            steps = observation.history.get(facts.key, ())
            said[facts.key] = with_savings(verdict(facts, steps, observation.ranks), steps)
    return Diagnosis(observation, said, of_hosts(observation))


def with_savings(said: Verdict, steps: Sequence[StepFacts]) -> Verdict:
    """Return the verdict on some steps with what each repair would save. Replaying the steps takes up to a second.

    Rules whose level depends on it have replayed them already.
    """
    saved: dict[int, Saving | None] = {}
    to_repair = [finding for finding in said.findings if finding.repair is not None and finding.saving is None]
    for since in dict.fromkeys(finding.since_step for finding in to_repair):
        together = [finding for finding in to_repair if finding.since_step == since]
        troubled = [step for step in steps if since is None or step.step >= since]
        repairs = [finding.repair for finding in together if finding.repair is not None]
        saved.update(zip(map(id, together), savings(troubled, repairs), strict=True))
    findings = tuple(replace(finding, saving=saved.get(id(finding), finding.saving)) for finding in said.findings)
    return Verdict(findings)


def current_runs(observation: Observation) -> frozenset[str]:
    """Return the runs that a diagnosis is about by default: those with a living rank, or else the newest."""
    began = {rank.identity.run_id: rank.run_began_ns for rank in observation.ranks}
    living = {rank.identity.run_id for rank in observation.ranks if rank.ring.alive}
    return frozenset(living or sorted(began, key=lambda run: began[run])[-1:])


def _explained(findings: Sequence[Finding], of: Collection[Rule]) -> tuple[Finding, ...]:
    """Return the findings; those that another one explains name it, or what explains that one in turn.

    They give no advice, because only what is done about the cause helps. Of two that explain each other, the worse one
    is the cause.
    """
    explains = {kind: rule.explains for rule in of for kind in rule.kinds}
    causes = sorted((finding for finding in findings if finding.level >= Level.WARNING), key=urgency)
    order = {cause.kind: place for place, cause in reversed(list(enumerate(causes)))}

    def is_cause(cause: str, effect: str) -> bool:
        mutual = cause in explains[effect] and effect in order
        return effect in explains[cause] and not (mutual and order[cause] > order[effect])

    named = {
        finding.kind: next((cause.kind for cause in causes if is_cause(cause.kind, finding.kind)), "")
        for finding in findings
    }

    def first_cause(kind: str) -> str:
        return first_cause(named[kind]) or named[kind] if named[kind] else ""

    def explained(finding: Finding) -> Finding:
        cause = first_cause(finding.kind)
        return replace(finding, consequence_of=cause, advice="") if cause else finding

    return tuple(map(explained, findings))


@cache
def condition_kinds() -> frozenset[str]:
    """Return the kinds of findings about what ranks do now."""
    return frozenset(kind for rule in rules() if rule.about is About.CONDITION for kind in rule.kinds)


def _found(case: Case, wanted: Iterable[Rule]) -> Iterator[tuple[Rule, Finding]]:
    for rule in wanted:
        if _applies(rule, case):
            for finding in rule.find(case):
                yield rule, finding


def _applies(rule: Rule, case: Case) -> bool:
    match rule.needs:
        case Needs.ANY:
            return True
        case Needs.STEPS:
            return case.has_steps
        case Needs.STALLS:
            return case.has_steps and case.facts.shared
        case Needs.OBSERVED:
            return case.has_steps and not case.facts.shared
