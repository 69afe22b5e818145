"""Words of a page are linked to their entries of the glossary."""

from __future__ import annotations

import re

from swtrace.report.word_links import WordLinks


def test_words_of_a_text_are_linked_once_and_as_written() -> None:
    """The longest word wins, plurals and hyphens count, other text is escaped, and a seen word is not linked again."""
    glossary, seen = WordLinks(), set[str]()
    text = glossary.linked("Stalls <b> on-time; stall ratio", seen)
    assert re.sub(r' title="[^"]*"', "", text) == (
        '<a class="word" href="#word-stall">Stalls</a> &lt;b&gt; '
        '<a class="word" href="#word-on-time">on-time</a>; <a class="word" href="#word-stall-ratio">stall ratio</a>'
    )
    assert glossary.linked("stall, installed", seen) == "stall, installed"
    assert WordLinks().linked("stall.swrec, a/stall") == "stall.swrec, a/stall"
