"""The page of a plan is complete and self-contained."""

from __future__ import annotations

import re

from swtrace.cli.plan.answer import answer
from swtrace.cli.plan.page import page
from tests.support.page_checker import Checker
from tests.support.plans import HALF, NOTHING, REFUSED, WHOLE, plan, question, source


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    """Every tag is closed, every link leads to a word on the page, and nothing refers to anything external."""
    made = plan(NOTHING, HALF, WHOLE, REFUSED)
    text = page(source(), (made, plan(REFUSED, name="<b>")), question())
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert set(checker.links) <= set(checker.ids)
    assert not {"script", "link", "img", "iframe"} & set(checker.counts)
    assert not re.search(r"https?://|url\(|@import|@font-face", text)
    said = "".join(checker.texts)
    assert answer(made) in said
    assert "31 of 61" in said
    assert "it was never measured" in said
