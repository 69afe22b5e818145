"""The glossary is read from its page of the documentation."""

from __future__ import annotations

from swtrace import glossary, units
from swtrace.ledger.facts import CAUSES


def test_every_cause_of_a_stall_has_an_entry() -> None:
    """The words that a verdict uses for causes are explained, and entries are in alphabetical order."""
    entries = glossary.entries()
    assert {units.words(cause) for cause in CAUSES} <= entries.keys()
    assert list(entries) == sorted(entries)


def test_an_entry_is_plain_text() -> None:
    """Links and emphasis become their text."""
    assert glossary.plain("*k*: see [stall ratio](#stall-ratio)") == "k: see stall ratio"
    assert not [text for text in glossary.entries().values() if "](" in glossary.plain(text)]
