"""The summary of a run: what it selects from the ledger, and the sentence it ends in."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from swtrace import units
from swtrace.cli.summary import (
    RefusedSummary,
    RingSummary,
    Summary,
    summarise,
)
from swtrace.cli.summary_text import print_summary
from swtrace.ledger.finding import Finding, Level
from swtrace.observing import watch_rings
from tests.support import fake_rank


@pytest.fixture
def summary(rings: Path, monkeypatch: pytest.MonkeyPatch) -> Summary:
    """Return the summary of ten steps of a rank whose even layers are each held up for a tenth of the step."""
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    monkeypatch.setenv("SWTRACE_RUN_ID", "a run")
    fake_rank.write(10)
    with watch_rings(rings) as watch:
        watch.drain()
        watch.ledger.flush()
        return summarise(watch.observe())


def text_of(summary: Summary) -> str:
    """Return the summary as it is printed where there is no terminal."""
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=80))
    return out.getvalue()


def test_summary_states_what_the_ledger_states(summary: Summary) -> None:
    """Ratios, bytes and memory of a rank are those of its records."""
    (rank,) = summary.series[0].ranks
    assert (rank.steps, rank.recent_steps) == (10, 10)
    assert rank.step_seconds == pytest.approx(0.010)
    assert rank.stall_ratio == pytest.approx(0.2)
    assert rank.on_time_rate == 0
    assert (rank.held_bytes, rank.replicated_bytes, rank.saved_ratio) == (3 << 20, 4 << 20, 0.25)


def test_summary_accounts_for_every_record(summary: Summary) -> None:
    """Written is delivered, lost and pending together."""
    (ring,) = summary.rings
    assert ring.written == ring.delivered + ring.lost + ring.pending == 10 * (fake_rank.LAYERS + 1)


def test_summary_survives_json(summary: Summary) -> None:
    """A script that reads the JSON has everything that was summarised."""
    assert Summary.from_json(json.loads(json.dumps(summary.to_json(), allow_nan=False))) == summary


def test_text_fits_a_terminal(summary: Summary) -> None:
    """The tables keep every figure in 80 columns."""
    text = text_of(summary)
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("self_attn.o_proj", "20.0 %", "3.00 MiB", "25.0 %", "50"):
        assert figure in text


def test_text_says_that_nothing_was_recorded() -> None:
    """An empty run is told as such."""
    assert text_of(Summary((), (), ())) == "No series was recorded.\n"


def test_text_says_what_is_not_shared() -> None:
    """What was asked for and refused is named with its reason."""
    refused = RefusedSummary("a run", 0, "mlp.gate", "its ranks are independent engines")
    text = text_of(
        Summary((), (refused,), (RingSummary("a run", 0, alive=False, written=0, delivered=0, lost=0, pending=0),))
    )
    assert "mlp.gate is not shared on rank 0: its ranks are independent engines" in text


def test_verdict_is_the_ledgers(summary: Summary) -> None:
    """The sentences are those that every view shows, with their numbers."""
    headline, *rest = summary.series[0].findings
    assert (headline.kind, headline.level) == ("partly_hidden", Level.WARNING)
    assert headline.numbers["stall_ratio"] == pytest.approx(0.2)
    assert "unattributed" in {finding.kind for finding in rest}
    text = " ".join(text_of(summary).split())
    assert all(finding.sentence in text for finding in summary.series[0].findings)


def test_advice_stands_below_its_sentence(summary: Summary) -> None:
    """What to do about a finding is in the JSON and in the text."""
    (series,) = summary.series
    finding = Finding("straggler", Level.BAD, "Rank 1 is the straggler.", rank=1, advice="Look at its host.")
    advised = replace(summary, series=(replace(series, findings=(finding,)),))
    assert advised.to_json()["series"][0]["findings"] == [finding.to_json()]
    assert Summary.from_json(advised.to_json()) == advised
    assert [line.strip(" •") for line in text_of(advised).splitlines()][-2:] == [finding.sentence, finding.advice]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(0.00000125), "1.25 us"),
        (units.seconds(0.0125), "12.5 ms"),
        (units.seconds(125.0), "125 s"),
        (units.seconds(None), "-"),
        (units.size(1023), "1023 B"),
        (units.size(1536), "1.50 KiB"),
        (units.size(1 << 50), "1024 TiB"),
        (units.bandwidth(1 << 30), "1.00 GiB/s"),
        (units.ratio(0.4567), "45.7 %"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    """A figure shows what can be read at a glance, and its unit."""
    assert text == expected
