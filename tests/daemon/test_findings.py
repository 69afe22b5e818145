"""Findings are samples: with the labels of their ranks and series, current, and found within a share of a core."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.daemon import findings
from swtrace.daemon.findings import SHARE, CurrentFindings, labels_of
from swtrace.daemon.labels import Labelling
from swtrace.diagnosis.finding import Finding, Level
from swtrace.ledger.facts import SeriesKey
from swtrace.observing import Observation
from tests.support.scenes import observation_of
from tests.support.schedules import key, simulate

SLOW = 2
VERDICT_S = 0.2
"""CPU time that a verdict seems to take."""


@pytest.fixture(scope="module")
def straggling() -> Observation:
    """Three ranks of one series, one of which computes longer."""

    def compute(rank: int, _step: int, _position: int) -> int:
        return 1_000_000 + 400_000 * (rank == SLOW)

    return observation_of(simulate(ranks=3, layers=12, k=1, steps=24, occupancy=300_000, compute=compute))


class Clocks:
    """A clock that stands still until a test moves it, and CPU time of which every verdict takes the same."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.read = 0

    def findings(self) -> CurrentFindings:
        """Return findings by these clocks."""
        return CurrentFindings(now_s=lambda: self.now_s, cpu_s=self._cpu_s)

    @property
    def verdicts(self) -> int:
        """Return how many verdicts were made."""
        return self.read // 2

    def _cpu_s(self) -> float:
        self.read += 1
        return self.read * VERDICT_S


def several(observation: Observation, series: int) -> Observation:
    """Return an observation with as many series, each of a run of its own."""
    (facts,) = observation.facts.series
    alike = [replace(facts, key=facts.key._replace(run_id=f"run-{number}")) for number in range(series)]
    return replace(
        observation,
        facts=replace(observation.facts, series=tuple(alike)),
        history={each.key: observation.history[facts.key] for each in alike},
    )


def renewed(observation: Observation) -> Observation:
    """Return the observation after something came to every series."""
    series = tuple(replace(facts) for facts in observation.facts.series)
    return replace(observation, facts=replace(observation.facts, series=series))


def dead(observation: Observation, rank: int) -> Observation:
    """Return the observation after a rank died."""
    ranks = tuple(replace(each, died=each.key == key(rank)) for each in observation.ranks)
    return replace(observation, ranks=ranks)


def kinds(found: CurrentFindings, observation: Observation) -> list[str]:
    """Return the kinds of the current findings."""
    return [finding.kind for _, finding in found.of(observation)]


def test_only_what_is_a_warning_or_worse_is_a_metric(straggling: Observation) -> None:
    """Notes and good news are no samples."""
    found = dict(enumerate(CurrentFindings().of(straggling)))
    assert "straggler" in {finding.kind for _, finding in found.values()}
    assert {finding.level for _, finding in found.values()} <= {Level.WARNING, Level.BAD}
    assert {series for series, _ in found.values()} == {straggling.facts.series[0].key}


def test_a_series_to_which_nothing_came_is_not_judged_again(straggling: Observation) -> None:
    """It keeps its findings, and idle ranks cost nothing."""
    clocks = Clocks()
    found = clocks.findings()
    first = kinds(found, straggling)
    clocks.now_s += 3600
    assert kinds(found, straggling) == first
    assert clocks.verdicts == 1
    kinds(found, renewed(straggling))
    assert clocks.verdicts == 2


def test_what_a_rank_does_now_is_found_although_nothing_came(straggling: Observation) -> None:
    """A death is found at the next scrape, and gone once the rank is back; so is every condition of a rank."""
    clocks = Clocks()
    found = clocks.findings()
    assert "died" not in kinds(found, straggling)
    assert kinds(found, dead(straggling, 0)).count("died") == 1
    assert "died" not in kinds(found, straggling)
    again = renewed(straggling)
    assert kinds(found, dead(again, 0)).count("died") == 1
    assert "died" not in kinds(found, again)
    assert clocks.verdicts == 2


def test_verdicts_take_no_more_than_their_share_of_a_core(straggling: Observation) -> None:
    """However many series there are and however often they are scraped, verdicts take that much CPU time."""
    clocks = Clocks()
    found = clocks.findings()
    many = several(straggling, 8)
    kinds(found, many)
    at_once = clocks.verdicts
    assert 0 < at_once < 8
    for _ in range(1000):
        clocks.now_s += 1
        kinds(found, many := renewed(many))
    assert (clocks.verdicts - at_once) * VERDICT_S == pytest.approx(SHARE * clocks.now_s, abs=2 * VERDICT_S)


def test_every_series_has_its_turn(straggling: Observation) -> None:
    """The series that was judged longest ago comes first, so with time all have findings."""
    clocks = Clocks()
    found = clocks.findings()
    many = several(straggling, 8)
    named: set[SeriesKey | None] = set()
    for _ in range(8):
        many = renewed(many)
        named |= {series for series, finding in found.of(many) if finding.kind == "straggler"}
        clocks.now_s += VERDICT_S / SHARE
    assert named == {facts.key for facts in many.facts.series}


def test_findings_of_a_series_that_is_gone_are_gone(straggling: Observation) -> None:
    """What was found about it is not kept."""
    found = CurrentFindings()
    assert kinds(found, straggling)
    assert kinds(found, several(straggling, 0)) == []


def test_a_rule_that_fails_leaves_the_other_findings(
    straggling: Observation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What ranks do now is found all the same, the scrape does not fail, and the log says so once."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no step")

    monkeypatch.setattr(findings, "verdict", fail)
    found = CurrentFindings()
    for _ in range(2):
        assert kinds(found, dead(renewed(straggling), 0)) == ["died"]
    assert [record.message for record in caplog.records] == ["a rule failed; its findings are missing from the metrics"]


# -- labels ----------------------------------------------------------------------------------------


def labelled(
    observation: Observation, *found: Finding, hosts: bool = False, of_series: bool = True
) -> list[dict[str, str]]:
    """Return the labels of findings about the series, or about no single one."""
    series = observation.facts.series[0].key if of_series else None
    shown = Labelling().assign(observation.ranks, hosts=hosts)
    return labels_of([(series, finding) for finding in found], shown, observation)


def test_each_rank_that_a_finding_names_has_a_sample(straggling: Observation) -> None:
    """With kind and severity beside the labels that the rank's other samples have."""
    finding = Finding("hung", Level.BAD, "", ranks=(2, 0))
    name = straggling.facts.series[0].key.name
    about = {"series": name, "kind": "hung", "severity": "bad"}
    assert labelled(straggling, finding) == [{"rank": "2", **about}, {"rank": "0", **about}]
    host = straggling.ranks[0].identity.host
    assert labelled(straggling, finding, hosts=True)[1] == {"rank": "0", "host": host, **about}


def test_a_finding_about_no_rank_has_the_labels_of_its_series(straggling: Observation) -> None:
    """Without rank and host; two findings of one kind and severity about a series are one sample."""
    finding = Finding("channel_bound", Level.BAD, "")
    name = straggling.facts.series[0].key.name
    expected = [{"series": name, "kind": "channel_bound", "severity": "bad"}]
    assert labelled(straggling, finding, finding, hosts=True) == expected


def test_a_finding_about_no_series_has_no_series(straggling: Observation) -> None:
    """Its ranks are those of its run; without ranks, it has neither."""
    run_id = straggling.ranks[0].identity.run_id
    lost = Finding("records_lost", Level.WARNING, "", ranks=(1,), run_id=run_id)
    unreadable = Finding("rings_unreadable", Level.WARNING, "")
    assert labelled(straggling, lost, unreadable, of_series=False) == [
        {"rank": "1", "kind": "records_lost", "severity": "warning"},
        {"kind": "rings_unreadable", "severity": "warning"},
    ]


def test_a_rank_that_is_not_observed_is_named_by_its_number(straggling: Observation) -> None:
    """A rank without a ring, which only its peers know, is not left out."""
    finding = Finding("untraced", Level.WARNING, "", ranks=(7,))
    (labels,) = labelled(straggling, finding)
    assert labels["rank"] == "7"
    assert labels["series"] == straggling.facts.series[0].key.name


def test_a_finding_about_a_run_that_is_not_shown_is_no_sample(straggling: Observation) -> None:
    """A younger run has taken over the ranks' labels, and is not what the finding is about."""
    young = tuple(
        replace(
            rank,
            identity=replace(rank.identity, run_id="young", start_time_ns=rank.identity.start_time_ns + 1),
            ring=replace(rank.ring, rank=rank.key._replace(run_id="young")),
        )
        for rank in straggling.ranks
    )
    old = tuple(replace(rank, ring=replace(rank.ring, alive=False)) for rank in straggling.ranks)
    both = replace(straggling, ranks=(*old, *young))
    assert labelled(both, Finding("straggler", Level.BAD, "", ranks=(2,))) == []
    run_id = old[0].identity.run_id
    assert labelled(both, Finding("records_lost", Level.WARNING, "", ranks=(2,), run_id=run_id), of_series=False) == []
