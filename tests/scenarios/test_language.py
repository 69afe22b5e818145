"""What people read is plain English: phrases that once made readers stumble stay out of messages, help and labels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(
    path for folder in ("swtrace", "tui", "dashboards/source") for path in ROOT.joinpath(folder).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SAY = {
    r"\b(tells|told|telling)\b": "say, report, record, show",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bfor ever\b": "forever",
    r"\bat hand\b": "available",
    r"\bno matter of\b": "is not the cause",
    r"\b(is|are|was|were) through\b": "has finished",
    r"\b(let|lets|letting) go of\b": "release",
    r"\bmade good\b": "what is done instead",
    r"\bwhoever\b": "code that, a reader that, ...",
    r"\ballowed (is|are)\b": "must be one of: ...",
    r"\b(is|are) there already\b": "already exists",
    r"\bcame too late\b": "overwritten before ... read",
    r"\bnobody's\b": "unknown",
    r"\bof theirs\b": "leave it out",
    r"\bpossible here\b": "must be ...",
    r"\bis held up by itself\b": "is late only because ...",
}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a module's strings but its docstrings, each with its line."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def stumbling(text: str) -> list[str]:
    """Return what is wrong with a text, with what to write instead."""
    return [
        f"{found.group()!r}: {instead}"
        for pattern, instead in SAY.items()
        if (found := re.search(pattern, text, re.IGNORECASE))
    ]


@pytest.mark.parametrize(
    "text", ["The rank told its peers.", "Mend it.", "x is there already", "it is no matter of the transport"]
)
def test_the_check_itself_finds_them(text: str) -> None:
    """A sentence of each of these kinds is found."""
    assert stumbling(text)


def test_strings_are_in_plain_words() -> None:
    """No message, help text or label of the package has a phrase of the list."""
    assert len(CODE) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for path in CODE
        for line, text in strings(path)
        for why in stumbling(text)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_plain_words(page: Path) -> None:
    """No page of the documentation has one either."""
    found = [
        f"{page.name}:{number}: {why}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for why in stumbling(line)
    ]
    assert found == []
