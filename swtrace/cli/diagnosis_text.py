"""A diagnosis on the terminal or in a pipe: the page, in the colours of the other commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from swtrace.diagnosis.page import LABEL_COLUMNS, MARKS, Style, lines

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.console import Console

    from swtrace.diagnosis.diagnosis import Diagnosis
    from swtrace.diagnosis.stacks import RankStacks

LEVEL_STYLES = {"good": "green", "note": "", "warning": "yellow", "bad": "bold red"}
_STYLES = {Style.HEADING: "bold", Style.TEXT: "", Style.DIM: "dim"}


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the page."""
    for line in lines(diagnosis, console.width):
        text = Text()
        if line.level is not None:
            text.append(f"{MARKS[line.level]} ", LEVEL_STYLES[line.level.word])
        elif line.text:
            text.append(" " * 2)
            if line.style is not Style.HEADING:
                text.append(line.label.ljust(LABEL_COLUMNS), "dim")
        text.append(line.text, _STYLES[line.style])
        console.print(text, soft_wrap=True)


def print_stacks(stacks: Collection[RankStacks], console: Console) -> None:
    """Print the Python stacks of ranks, or why there are none."""
    if not stacks:
        console.print("\nNo stacks: nothing is wrong with a living rank.")
    for each in stacks:
        console.print(Text(f"\nPython stacks of rank {each.rank}", "bold"))
        console.print(each.text or f"None: {each.problem}.", markup=False, soft_wrap=True)
