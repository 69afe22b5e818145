"""The view shows the page of ``swtrace diagnose``."""

from __future__ import annotations

from swtrace_tui.palette import MONO
from swtrace_tui.views.diagnosis_view import DiagnosisView, page_lines
from swtrace_tui.views.view import Scene

from swtrace.diagnosis.page import lines
from tests.support.scenes import pictured


def test_the_view_has_the_lines_of_the_page() -> None:
    """Every word of the page is on the screen, in its order."""
    seen = pictured("straggler")
    shown = [strip.text for strip in page_lines(Scene(seen, MONO, seen.diagnosis), 110)]
    for line, row in zip(lines(seen.diagnosis, 108), shown, strict=False):
        assert row.rstrip().endswith(line.text)
        assert line.label in row
    assert any("to do" in row for row in shown)


def test_a_small_screen_begins_with_the_answer() -> None:
    """On 40 columns and 9 lines the whole answer is seen without scrolling."""
    seen = pictured("straggler")
    drawn = DiagnosisView().draw(Scene(seen, MONO, seen.diagnosis), 40, 9)
    assert seen.diagnosis.answer in " ".join(" ".join(strip.text for strip in drawn).split())


def test_the_page_says_where_its_words_are_explained() -> None:
    """Its last line names the key of the help, which has the glossary."""
    seen = pictured("straggler")
    assert "? explains the words" in page_lines(Scene(seen, MONO, seen.diagnosis), 80)[-1].text
