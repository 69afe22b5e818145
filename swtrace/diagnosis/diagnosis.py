"""Apply the rules: the verdict on one series, and the diagnosis of everything that is observed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.diagnosis.rules import host_rules, rules
from swtrace.ledger.facts import SeriesFacts, SeriesKey, StepFacts
from swtrace.observing.observation import Observation, ObservedRank


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about one series: what stopped it, the headline, what its plan says, and the others by level."""

    headline: Finding
    findings: tuple[Finding, ...]
    """The headline is the first."""

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max(finding.level for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that the rules find in an observation."""

    series: dict[SeriesKey, Verdict]
    of_hosts: tuple[Finding, ...]
    """Findings that are about no single series."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the worst first; of one level, those whose repair saves most."""
        every = [*(one for said in self.series.values() for one in said.findings), *self.of_hosts]
        return tuple(sorted(every, key=lambda one: (-one.level, -(one.saving.share if one.saving else 0.0))))

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max((finding.level for finding in self.findings), default=Level.GOOD)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "level": self.level.word,
            "series": [
                {
                    "run_id": key.run_id,
                    "name": key.name,
                    "start_layer": key.start_layer,
                    "group_ranks": list(key.group_ranks),
                    "level": said.level.word,
                    "findings": [finding.to_json() for finding in said.findings],
                }
                for key, said in self.series.items()
            ],
            "hosts": [finding.to_json() for finding in self.of_hosts],
        }


def verdict(facts: SeriesFacts, steps: Sequence[StepFacts] = (), ranks: Collection[ObservedRank] = ()) -> Verdict:
    """Return the findings about a series.

    Args:
        facts: The series, summed over the last steps.
        steps: Those steps, oldest first (:meth:`Ledger.history`). Without them, findings are about the sums only.
        ranks: The observed ranks, of any run. Without them, no finding is about what ranks are doing now.
    """
    case = Case.of(facts, steps, ranks)
    found: list[tuple[Rule, Finding]] = [
        (rule, finding) for rule in rules() if _applies(rule, case) for finding in rule.find(case)
    ]
    first = [finding for rule, finding in found if rule.about <= About.PLAN]
    others = [finding for rule, finding in found if rule.about > About.PLAN]
    findings = (*first, *sorted(others, key=lambda finding: -finding.level))
    return Verdict(findings[0], findings)


def conditions(facts: SeriesFacts, steps: Sequence[StepFacts], ranks: Collection[ObservedRank]) -> tuple[Finding, ...]:
    """Return what is wrong with a series' ranks now. Unlike a verdict, this takes little time."""
    case = Case.of(facts, steps, ranks)
    return tuple(
        finding
        for rule in rules()
        if rule.about is About.CONDITION and _applies(rule, case)
        for finding in rule.find(case)
    )


def of_hosts(observation: Observation) -> tuple[Finding, ...]:
    """Return what is wrong with ranks and rings, whatever their series. This takes little time."""
    return tuple(finding for rule in host_rules() for finding in rule.find(observation))


def diagnose(observation: Observation) -> Diagnosis:
    """Return all findings."""
    said = {}
    for facts in observation.facts.series:
        if facts.ranks:
            said[facts.key] = verdict(facts, observation.history.get(facts.key, ()), observation.ranks)
    return Diagnosis(said, of_hosts(observation))


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
