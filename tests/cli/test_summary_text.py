"""The summary as text: its figures fit a terminal, and its sentences are those of the verdict."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from swtrace.cli.summary import (
    RefusedSummary,
    RingSummary,
    Summary,
)
from swtrace.cli.summary_text import print_summary
from swtrace.diagnosis.finding import Finding, Level


def text_of(summary: Summary) -> str:
    """Return the summary as it is printed where there is no terminal."""
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=80))
    return out.getvalue()


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
    finding = Finding("straggler", Level.BAD, "Rank 1 is the straggler.", ranks=(1,), advice="Look at its host.")
    advised = replace(summary, series=(replace(series, findings=(finding,)),))
    assert advised.to_json()["series"][0]["findings"] == [finding.to_json()]
    assert Summary.from_json(advised.to_json()) == advised
    assert [line.strip(" •") for line in text_of(advised).splitlines()][-2:] == [finding.sentence, finding.advice]


def test_text_says_which_rank_is_on_which_host(summary: Summary) -> None:
    """Where ranks are on several hosts, a line says which ones; on one host there is no such line."""
    (series,) = summary.series
    (rank,) = series.ranks
    assert rank.host not in text_of(summary)
    other = replace(series, ranks=(rank, replace(rank, rank=2, host="gpu-b"), replace(rank, rank=3, host="gpu-b")))
    assert f"on 2 hosts: ranks 1 on {rank.host}, 2-3 on gpu-b\n" in text_of(replace(summary, series=(other,)))
