"""Reports of the demo's ranks: they arrive whole, each in one line that no other rank can break."""

from __future__ import annotations

import select

import pytest

from swtrace.cli.demo.report_lines import RankReport, What


def test_a_report_arrives_as_it_was_sent(capfd: pytest.CaptureFixture[str]) -> None:
    """Every field survives the line, with quotes, line ends and letters beyond ASCII in its text."""
    sent = RankReport(What.FAILED, 3, pid=7, steps=5, checked=40, status=-9, text='"layer 3"\nfür Rang 1')
    sent.write()
    (line,) = capfd.readouterr().out.splitlines()
    assert RankReport.parse(line) == sent


@pytest.mark.parametrize("text", ["x" * 10_000, "\n" * 10_000, "ü" * 10_000])
def test_a_long_error_is_cut_to_a_line_that_is_written_at_once(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """A pipe keeps a write whole up to ``PIPE_BUF``, so no report is longer; its text is cut between letters."""
    RankReport(What.FAILED, 1, text=text).write()
    line = capfd.readouterr().out
    assert len(line.encode()) <= select.PIPE_BUF
    cut = RankReport.parse(line).text
    assert text.startswith(cut)
    assert len(cut.encode()) > 1000
