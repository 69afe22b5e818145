"""The report page is complete and self-contained, and shows the facts of the ledger."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from swtrace.session import Session
from tests.export.test_export import STEPS, recording, session  # noqa: F401 - fixtures
from tests.recording.test_commands import swtrace


class Checker(HTMLParser):
    """Collects texts, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)
        assert not any(name in {"src", "href"} for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its signature
        """Record a self-closing tag."""
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        """Close a tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Record a text."""
        self.texts.append(data)


@pytest.fixture
def page(recording: Path, tmp_path: Path) -> str:  # noqa: F811 - a fixture
    """Return the page of a recording."""
    swtrace("report", recording, "-o", tmp_path / "report.html", "--warmup", "0")
    return (tmp_path / "report.html").read_text()


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    """Every tag is closed, and nothing refers to anything external: no script, link, image, font or address."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "link", "img", "iframe"} & set(checker.counts)
    assert not re.search(r"https?://|url\(|@import|@font-face", page)


def test_the_page_says_what_the_ledger_says(page: str, session: Session) -> None:  # noqa: F811 - a fixture
    """The page has every sentence of the verdict, each rank's stall ratio and the slowest steps."""
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.texts)
    (verdict,) = session.verdicts().values()
    for finding in verdict.findings:
        assert finding.sentence in text
    for recent in session.sums_by_rank().values():
        assert f"{100 * (recent.stall_ratio or 0):.1f} %" in text
    assert f"{STEPS - 1} steps, 1 aborted" in text
    assert page.count('aria-label="step ') == 3
    assert len(re.findall(r'<rect class="(?:heat\d|own)"', page)) == 3 * 5


def test_what_is_missing_stands_at_the_top(recording: Path, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    """A report of an incomplete recording says so before anything else."""
    cut = tmp_path / "cut.swrec"
    cut.write_bytes(recording.read_bytes()[:-10])
    swtrace("report", cut, "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert 0 < text.index("The recording ends within a frame: its last") < text.index("<h2")
