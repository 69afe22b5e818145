"""Progress of the demo: a line that names the most stalled rank, or a table of all ranks on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from swtrace.cli.demo.progress import Progress
from swtrace.cli.summary import Summary


def with_a_worse_rank(summary: Summary) -> Summary:
    """Return the summary with a second rank, which stalls more than the first."""
    (series,) = summary.series
    worse = replace(series.ranks[0], rank=7, steps=8, stall_ratio=0.75)
    return replace(summary, series=(replace(series, ranks=(*series.ranks, worse)),))


def test_a_pipe_gets_a_line_about_the_most_stalled_rank(summary: Summary) -> None:
    """The line has the last step and the figures of the rank that stalls most; a second has one line at most."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=80))
    for _ in range(3):
        progress.show(with_a_worse_rank(summary))
    progress.close()
    assert out.getvalue() == (
        "self_attn.o_proj: step 8, 10.0 ms per step, stall 75.0 % (rank 7), efficiency -, on time 0.0 %\n"
    )


def test_nothing_is_shown_before_the_first_step(summary: Summary) -> None:
    """While ranks only load, there is no line of zeros."""
    out = io.StringIO()
    (series,) = summary.series
    idle = replace(summary, series=(replace(series, ranks=tuple(replace(rank, steps=0) for rank in series.ranks)),))
    Progress(Console(file=out, width=80)).show(idle)
    assert out.getvalue() == ""


def test_a_terminal_gets_a_row_for_each_rank(summary: Summary) -> None:
    """On a terminal every rank has a row with its stall."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=100, force_terminal=True))
    progress.show(with_a_worse_rank(summary))
    shown = out.getvalue()
    progress.close()
    for stall in ("20.0 %", "75.0 %"):
        assert stall in shown
