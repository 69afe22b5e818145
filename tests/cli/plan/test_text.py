"""A plan on the terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from swtrace.cli.plan.series_plan import SeriesPlan
from swtrace.cli.plan.text import print_plans
from tests.support.plans import HALF, NOTHING, REFUSED, WHOLE, plan, question, source

ROWS = (NOTHING, HALF, WHOLE, REFUSED)


def printed(columns: int, *plans: SeriesPlan) -> str:
    """Return what is printed in a terminal of this width, as plain text."""
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, no_color=True, highlight=False)
    print_plans(source(), plans, question(), console)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_it_fits_the_terminal(columns: int) -> None:
    """No line but the settings to copy is wider than the terminal, and no cell is cut."""
    text = printed(columns, plan(*ROWS))
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    assert max(map(len, lines)) <= columns
    assert "…" not in text


def test_the_choice_is_marked_without_colour() -> None:
    """The chosen row has a mark in the table and in the plot, and no other row has."""
    text = printed(80, plan(*ROWS))
    marked = [line for line in text.splitlines() if "▶ " in line and "choice" not in line]
    assert len(marked) == 2
    assert all("31 of 61" in line for line in marked)


def test_what_is_refused_is_counted_with_its_reason() -> None:
    """A candidate without figures is in neither table nor plot; its reason and number follow."""
    text = printed(80, plan(*ROWS))
    assert "Not predicted: 1 of 4 candidates.\n  1: it was never measured" in text
    assert "broadcast" not in text


def test_the_settings_can_be_copied() -> None:
    """The settings are printed in one line each, for the shell and for vLLM."""
    text = printed(80, plan(*ROWS))
    assert "SWTRACE=1 SWTRACE_SERIES=self_attn.o_proj SWTRACE_SHARE=1/2 SWTRACE_PREFETCH_STEP=2" in text
    assert '--additional-config \'{"swtrace": {"enabled": true, "series": ["self_attn.o_proj"], "share": "1/2"' in text
