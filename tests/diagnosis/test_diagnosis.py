"""The rules are one set: found by themselves, documented, and shown by every view."""

from __future__ import annotations

import json
from pathlib import Path

from swtrace.diagnosis.diagnosis import diagnose
from swtrace.diagnosis.finding import Level
from swtrace.diagnosis.rules import host_rules, rules
from tests.support.scenes import empty, observation_of
from tests.support.schedules import simulate
from tests.support.verdicts import even

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"


def test_every_kind_of_finding_has_a_line_in_the_documentation() -> None:
    """A new rule comes with its line, and no line is about a kind that does not exist."""
    kinds = {kind for rule in rules() for kind in rule.kinds} | {kind for rule in host_rules() for kind in rule.kinds}
    rows = {line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}
    assert rows == kinds


def test_findings_stand_in_the_order_of_their_severity() -> None:
    """Over all series and hosts, the worst comes first, and the diagnosis is as bad as that."""
    seen = diagnose(
        observation_of(simulate(ranks=3, layers=12, k=1, steps=24, occupancy=2_000_000, compute=even(1_000_000)))
    )
    levels = [finding.level for finding in seen.findings]
    assert levels == sorted(levels, reverse=True)
    assert seen.level is levels[0] is Level.BAD


def test_nothing_observed_is_a_diagnosis_too() -> None:
    """Without any rank there is no finding, and the JSON says so."""
    seen = diagnose(empty())
    assert seen.level is Level.GOOD
    assert json.loads(json.dumps(seen.to_json())) == {"level": "good", "series": [], "hosts": []}
