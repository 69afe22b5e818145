"""The glossary on the page: words in a text become links to what ``docs/glossary.md`` says about them."""

from __future__ import annotations

import re
from html import escape

from swtrace.glossary import EMPHASIS, LINK, entries, plain


class WordLinks:
    """Links words to their entries, and remembers which entries the page needs."""

    def __init__(self) -> None:
        self._entries = entries()
        longest_first = sorted(self._entries, key=len, reverse=True)
        words = "|".join(re.escape(word).replace(r"\ ", "[ -]") for word in longest_first)
        self._words = re.compile(rf"(?<![./])\b({words})s?\b(?![./]\w)", re.IGNORECASE)
        self._used: set[str] = set()

    def linked(self, text: str, seen: set[str] | None = None) -> str:
        """Return a text as HTML in which the words of the glossary are links.

        Args:
            text: Plain text.
            seen: Words that need no further link; the words of the text are added to it.
        """
        known = set() if seen is None else seen
        parts, end = [], 0
        for match in self._words.finditer(text):
            word = match[1].lower().replace("-", " ")
            if word not in known:
                known.add(word)
                parts += [escape(text[end : match.start()]), self._link(word, match[0])]
                end = match.end()
        return "".join((*parts, escape(text[end:])))

    def section(self) -> str:
        """Return the entries of all words linked so far, and of the words that these entries link to."""
        todo, needed = list(self._used), set[str]()
        while todo:
            word = todo.pop()
            if word not in needed:
                needed.add(word)
                todo += [linked for linked in map(_word, _targets(self._entries[word])) if linked in self._entries]
        if not needed:
            return ""
        entries = "".join(
            f'<div class="keep"><dt id="{_anchor(word)}">{escape(word.capitalize())}</dt>'
            f"<dd>{_html(self._entries[word], needed)}</dd></div>"
            for word in sorted(needed)
        )
        return f'<h2 class="words">Words on this page</h2><dl>{entries}</dl>'

    def _link(self, word: str, shown: str) -> str:
        self._used.add(word)
        title = escape(plain(self._entries[word]))
        return f'<a class="word" href="#{_anchor(word)}" title="{title}">{escape(shown)}</a>'


def _targets(markdown: str) -> list[str]:
    return [match[2] for match in LINK.finditer(markdown)]


def _word(target: str) -> str:
    """Return the word of a link within the glossary: ``stall ratio`` for ``#stall-ratio``."""
    return target.removeprefix("#").replace("-", " ")


def _anchor(word: str) -> str:
    return f"word-{word.replace(' ', '-')}"


def _html(markdown: str, present: set[str]) -> str:
    """Return an entry as HTML. Links lead to other entries; links to other pages become text."""

    def link(match: re.Match[str]) -> str:
        word = _word(match[2])
        return f'<a href="#{_anchor(word)}">{match[1]}</a>' if word in present else match[1]

    return EMPHASIS.sub(r"<i>\1</i>", LINK.sub(link, escape(markdown, quote=False)))
