"""The glossary: what the words of verdicts, screens and metrics mean, as ``docs/glossary.md`` says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
"""A Markdown link: its text and its target."""
EMPHASIS = re.compile(r"\*([^*]+)\*")
_HEADING = re.compile(r"^### (.+)$", re.MULTILINE)


@cache
def entries() -> Mapping[str, str]:
    """Return the Markdown of each entry, by its word in lower case, in alphabetical order."""
    _, *parts = _HEADING.split(_source().read_text(encoding="utf-8"))
    return {word.lower(): " ".join(text.split()) for word, text in zip(parts[::2], parts[1::2], strict=True)}


def plain(markdown: str) -> str:
    """Return an entry as plain text."""
    return EMPHASIS.sub(r"\1", LINK.sub(r"\1", markdown))


def _source() -> Path:
    """Return the glossary: in the installed package, or in the documentation of a checkout."""
    package = Path(__file__).parent
    packaged = package / "_docs" / "glossary.md"
    return packaged if packaged.is_file() else package.parent / "docs" / "glossary.md"
