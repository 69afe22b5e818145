"""A diagnosis as text: plain in a pipe, with marks instead of colours."""

from __future__ import annotations

import io

from rich.console import Console

from swtrace.cli.diagnosis_text import print_diagnosis, print_stacks
from swtrace.diagnosis.diagnosis import diagnose
from swtrace.diagnosis.page import MARKS, lines
from swtrace.diagnosis.stacks import RankStacks
from tests.support.scenes import observation_of
from tests.support.simulated_rings import scenario


def console(*, colour: bool = False) -> Console:
    """Return a console over a text, 90 columns wide."""
    return Console(file=io.StringIO(), width=90, force_terminal=colour, color_system="standard" if colour else None)


def printed(to: Console) -> str:
    """Return what was printed."""
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_the_text_is_the_page() -> None:
    """Each line has its mark or label and its text; a pipe gets no colour, a terminal does."""
    found = diagnose(observation_of(scenario("stalled")))
    plain, coloured = console(), console(colour=True)
    print_diagnosis(found, plain)
    print_diagnosis(found, coloured)
    rows = printed(plain).splitlines()
    page = lines(found, 90)
    assert len(rows) == len(page)
    for row, line in zip(rows, page, strict=True):
        assert row.endswith(line.text)
        assert row.startswith(f"{MARKS[line.level]} " if line.level is not None else f"  {line.label}".rstrip())
    assert "\x1b[" not in printed(plain)
    assert "\x1b[1;31m■" in printed(coloured)


def test_stacks_follow_or_the_reason_why_there_are_none() -> None:
    """What py-spy printed stays as it is, brackets included."""
    to = console()
    print_stacks([RankStacks(1, text="step (model.py:7) [/b]"), RankStacks(2, problem="py-spy is not installed")], to)
    assert "Python stacks of rank 1\nstep (model.py:7) [/b]\n" in printed(to)
    assert "Python stacks of rank 2\nNone: py-spy is not installed.\n" in printed(to)
    nothing = console()
    print_stacks([], nothing)
    assert "nothing is wrong with a living rank" in printed(nothing)
