"""The page says who, since when, how sure, why, what to do and what that saves, in the width that there is."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from swtrace.diagnosis.diagnosis import Diagnosis, Verdict, diagnose
from swtrace.diagnosis.finding import NS_PER_S, Finding, Level
from swtrace.diagnosis.page import Line, Style, certainty, gain, lines, since, who
from swtrace.ledger.planning.repair import Saving
from tests.support.scenes import observation_of
from tests.support.simulated_rings import scenario

TROUBLE = Finding(
    "straggler",
    Level.BAD,
    "Rank 1 is slow.",
    ranks=(1,),
    layer=17,
    advice="Look at its host.",
    confidence=0.97,
    since_step=1204,
    evidence=("It takes 3 ms.", "The others take 2 ms."),
    saving=Saving(0.081, 0.069, 0.093),
)


def page_of(*findings: Finding, width: int = 100) -> str:
    """Return the page of a diagnosis of these findings, as text."""
    return "\n".join(f"{line.label} {line.text}" for line in lines(diagnosis_of(*findings), width))


def diagnosis_of(*findings: Finding) -> Diagnosis:
    """Return a diagnosis of a simulated run that has these findings only."""
    seen = observation_of(scenario("hidden"))
    return Diagnosis(seen, {seen.facts.series[0].key: Verdict(findings)}, ())


def test_a_trouble_is_told_from_its_sentence_to_its_gain() -> None:
    """Everything that a finding holds is on the page, in this order."""
    page = page_of(TROUBLE)
    parts = (
        "Rank 1 is slow.",
        "who rank 1 (pid ",
        "layer 17",
        "since step 1,204",
        "how sure very likely (97 %)",
        "evidence · It takes 3 ms.",
        "· The others take 2 ms.",
        "to do Look at its host.",
        "gain repairing this saves 8.1 % (6.9 to 9.3) of step time",
        "looked at run run; 4 ranks on host; the last 24 steps of o_proj",
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_what_a_cause_explains_stands_with_it() -> None:
    """A consequence has one line below its cause, without what is in brackets, and lends it its level."""
    cause = replace(TROUBLE, level=Level.WARNING)
    stall = Finding("stalled", Level.BAD, "Rank 0 waits (a lot). And more.", consequence_of="straggler")
    drawn = lines(diagnosis_of(stall, cause), 100)
    assert [line.text for line in drawn if line.level is not None] == ["Rank 1 is slow."]
    assert drawn[0].level is Level.BAD
    assert Line("Rank 0 waits.", Style.DIM, label="shows as") in drawn


@pytest.mark.parametrize("width", [40, 80, 120, 300])
@pytest.mark.parametrize("name", ["hidden", "stalled", "straggler"])
def test_no_line_is_wider_than_there_is_room(name: str, width: int) -> None:
    """Long sentences are wrapped beside their label, and never wider than is easy to read."""
    for line in lines(diagnose(observation_of(scenario(name))), width):
        assert line.indent + len(line.text) <= min(width, 110)


def test_since_is_the_local_time_and_how_long_ago() -> None:
    """After a day it has a date; what is unknown is left out."""
    at_s = 1_700_000_000
    finding = replace(TROUBLE, since_ns=at_s * NS_PER_S)
    clock = time.strftime("%H:%M:%S", time.localtime(at_s))
    assert since(finding, (at_s + 180) * NS_PER_S) == f"{clock} (3 min ago), step 1,204"
    assert since(finding, (at_s + 90_000) * NS_PER_S).startswith(time.strftime("%Y-%m-%d ", time.localtime(at_s)))
    assert since(replace(finding, since_step=None), 0) == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    assert since(replace(TROUBLE, since_step=None), 0) == ""


@pytest.mark.parametrize(
    ("confidence", "words"),
    [(1.0, "observed"), (0.9999, "very likely (99.9 %)"), (0.85, "likely (85 %)"), (0.5, "possible (50 %)")],
)
def test_certainty_has_a_word_and_a_number(confidence: float, words: str) -> None:
    """Only what was observed is certain."""
    assert certainty(replace(TROUBLE, confidence=confidence)) == words


def test_many_ranks_are_counted() -> None:
    """The first four are named with host and process."""
    text = who(replace(TROUBLE, ranks=tuple(range(9)), layer=None), diagnosis_of(TROUBLE), "run")
    assert text.startswith("rank 0 (pid ")
    assert text.endswith("and 5 more")
    assert gain(replace(TROUBLE, saving=None)) == ""
