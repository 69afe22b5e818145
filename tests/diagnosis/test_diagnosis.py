"""The rules are one set: found by themselves, documented, and shown by every view."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from swtrace.diagnosis.diagnosis import _explained, current_runs, diagnose, urgency
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rules import host_rules, rules
from swtrace.ledger.planning.repair import Saving
from tests.support.scenes import empty, observation_of
from tests.support.schedules import simulate
from tests.support.simulated_rings import scenario
from tests.support.verdicts import even

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"


def test_every_kind_of_finding_has_a_line_in_the_documentation() -> None:
    """A new rule comes with its line, and no line is about a kind that does not exist."""
    kinds = {kind for rule in rules() for kind in rule.kinds} | {kind for rule in host_rules() for kind in rule.kinds}
    table = PAGE.read_text(encoding="utf-8").partition("\n## Kinds\n")[2].partition("\n## ")[0]
    rows = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert rows == kinds


def test_findings_stand_in_the_order_of_their_severity() -> None:
    """Over all series and hosts, the worst comes first, and the diagnosis is as bad as that."""
    seen = diagnose(
        observation_of(simulate(ranks=3, layers=12, k=1, steps=24, occupancy=2_000_000, compute=even(1_000_000)))
    )
    levels = [finding.level for finding in seen.findings]
    assert levels == sorted(levels, reverse=True)
    assert seen.level is levels[0] is Level.BAD


def test_of_two_findings_that_explain_each_other_the_worse_one_is_the_cause() -> None:
    """A slow source makes a link look slow, and a slow link a source. What costs more is the trouble."""
    link = Finding("slow_link", Level.WARNING, "link", ranks=(1,), saving=Saving(0.03, 0.02, 0.04))
    source = Finding("slow_source", Level.BAD, "source", ranks=(0,), saving=Saving(0.2, 0.1, 0.3))
    explained = {finding.kind: finding.consequence_of for finding in _explained((link, source), rules())}
    assert explained == {"slow_link": "slow_source", "slow_source": ""}


def test_nothing_observed_is_a_diagnosis_too() -> None:
    """Without any rank there is no finding, and the JSON says so."""
    seen = diagnose(empty())
    assert seen.level is Level.GOOD
    assert not seen.judged
    said = json.loads(json.dumps(seen.to_json()))
    assert (said["level"], said["judged"], said["series"], said["hosts"]) == ("good", False, [], [])
    assert said["answer"] == "There is nothing to diagnose: no rank was found."


def test_what_a_finding_explains_is_no_trouble_of_its_own() -> None:
    """The stall that a straggler causes names it, follows it, and is listed with it once."""
    seen = diagnose(observation_of(scenario("straggler", steps=40)))
    (straggler,) = [trouble for trouble in seen.troubles if trouble.finding.kind == "straggler"]
    effects = {effect.kind for effect in straggler.effects}
    assert effects >= {"late_issue", "worst_layer"}
    assert {finding.consequence_of for finding in seen.findings if finding.kind in effects} == {"straggler"}
    assert effects.isdisjoint(trouble.finding.kind for trouble in seen.troubles)
    assert seen.answer == seen.troubles[0].finding.sentence == straggler.finding.sentence


def test_no_kind_explains_itself() -> None:
    """Rules that explain each other in a circle would leave no cause. Of a pair, the worse one is taken."""
    every = {kind: rule.explains for rule in rules() for kind in rule.kinds}
    explains = {cause: [kind for kind in kinds if cause not in every[kind]] for cause, kinds in every.items()}
    for kind, explained in explains.items():
        reached, todo = set[str](), list(explained)
        while todo:
            reached.add(following := todo.pop())
            todo += [each for each in explains[following] if each not in reached]
        assert kind not in reached


def test_the_same_trouble_in_two_series_is_one() -> None:
    """A rank that is slow in two linears is named once, with both."""
    one = observation_of(scenario("straggler", steps=40))
    (facts,) = one.facts.series
    other = replace(facts, key=facts.key._replace(name="down_proj"))
    both = replace(
        one,
        facts=replace(one.facts, series=(facts, other)),
        history={facts.key: one.history[facts.key], other.key: one.history[facts.key]},
    )
    (straggler,) = [trouble for trouble in diagnose(both).troubles if trouble.finding.kind == "straggler"]
    assert straggler.keys == (facts.key, other.key)


def test_a_rank_that_stands_still_comes_before_one_that_is_slow() -> None:
    """Whatever repairing the slow one saves: a rank that died or hangs saves everything."""
    slow = Finding("straggler", Level.BAD, "slow", saving=Saving(0.4, 0.3, 0.5))
    assert min([slow, Finding("died", Level.BAD, "died")], key=urgency).kind == "died"


def test_by_default_runs_that_live_are_diagnosed() -> None:
    """Without any, it is the newest run."""
    seen = observation_of(scenario("hidden"))
    (old, *_), (_, new, *_) = seen.ranks, seen.ranks
    old = replace(old, identity=replace(old.identity, run_id="old"), run_began_ns=1)
    new = replace(new, identity=replace(new.identity, run_id="new"), run_began_ns=2)
    ended = replace(new.ring, alive=False)
    assert current_runs(replace(seen, ranks=(old, new))) == {"old", "new"}
    assert current_runs(replace(seen, ranks=(old, replace(new, ring=ended)))) == {"old"}
    dead = tuple(replace(rank, ring=ended) for rank in (old, new))
    assert current_runs(replace(seen, ranks=dead)) == {"new"}
