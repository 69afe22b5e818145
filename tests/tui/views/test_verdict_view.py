"""The verdict view shows the ledger's findings in the ledger's words."""

from __future__ import annotations

from swtrace_tui.palette import MONO
from swtrace_tui.views.overview import sentence_of
from swtrace_tui.views.verdict_view import VerdictView, series_lines
from swtrace_tui.views.view import Scene

from tests.support.scenes import pictured


def test_the_verdict_view_shows_each_finding_with_its_advice() -> None:
    """Sentence and advice are the ledger's own words, as ``--json``, reports and tests have them."""
    seen = pictured("straggler")
    (series,) = seen.series
    scene = Scene(seen, MONO, {series.key: series.verdict})
    text = " ".join(" ".join(strip.text for strip in series_lines(series, scene, 110)).split())
    assert any(finding.advice for finding in series.verdict.findings)
    for finding in series.verdict.findings[1:]:
        assert f"{finding.sentence} {finding.advice}".strip() in text


def test_a_small_verdict_begins_with_the_headline() -> None:
    """On 40 columns and 9 lines the whole headline is seen without scrolling."""
    seen = pictured("straggler")
    (series,) = seen.series
    scene = Scene(seen, MONO, {series.key: series.verdict})
    text = " ".join(" ".join(strip.text for strip in VerdictView().draw(scene, 40, 9)).split())
    assert sentence_of(series.headline) in text


def test_a_verdict_says_where_its_words_are_explained() -> None:
    """The title of the findings names the key of the help, which has the glossary."""
    seen = pictured("straggler")
    (series,) = seen.series
    lines = series_lines(series, Scene(seen, MONO, {series.key: series.verdict}), 80)
    assert "? explains the words" in " ".join(strip.text for strip in lines[:4])
