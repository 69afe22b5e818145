"""Which layers of a linear are shared: all, none, an evenly spaced part, or those that a user lists.

Launchers, readers and ranks all load this module, so it uses only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

ALL, NONE = "all", "none"
MUST_BE = "all, none, a fraction such as 1/2, or layers such as layers:0-40:2,43"
"""The forms that :meth:`Share.parse` reads."""

_LISTED = "layers:"
_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a linear's layers that is shared."""

    text: str = ALL
    """As the user wrote it, without spaces."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``all``, ``none``, ``1/2``, or ``layers:0-40:2,43`` (from layer 0 to 40, every second; and layer 43).

        Raises:
            ValueError: the text is none of these.
        """
        made = cls("".join(text.split()).lower())
        if made.text in {ALL, NONE}:
            return made
        if made.text.startswith(_LISTED):
            made._runs()
            return made
        numerator, slash, denominator = made.text.partition("/")
        if not (slash and numerator.isdecimal() and denominator.isdecimal() and 0 < int(numerator) < int(denominator)):
            raise ValueError(text)
        return made

    @classmethod
    def of_layers(cls, layers: tuple[int, ...]) -> Self:
        """Return the share that lists these layers, in ascending order."""
        return cls(_LISTED + runs(layers))

    @classmethod
    def of_selected(cls, layers: tuple[int, ...], stack: int) -> Self:
        """Return the share that selects these of a rank's ``stack`` layers: all, none or a list."""
        return cls(ALL) if len(layers) == stack else cls.of_layers(layers) if layers else cls(NONE)

    @property
    def observes(self) -> bool:
        """Whether no layer is shared, so that the linears are only watched."""
        return self.text == NONE

    def layers(self, start: int, end: int) -> tuple[int, ...]:
        """Return the shared layers among ``[start, end)``, in ascending order.

        A fraction of them is rounded to the nearest number of layers, spaced evenly. Listed layers outside the range
        are left out.
        """
        if self.text == ALL:
            return tuple(range(start, end))
        if self.text == NONE:
            return ()
        if self.text.startswith(_LISTED):
            listed = self._runs()
            return tuple(layer for layer in range(start, end) if any(layer in run for run in listed))
        total = end - start
        count = int(Fraction(self.text) * total + Fraction(1, 2))
        return tuple(start + -(-index * total // count) for index in range(count))

    def beyond(self, end: int) -> str:
        """Return the listed layers from ``end`` on, in the form that ``layers:`` takes; empty if there are none."""
        listed = self._runs() if self.text.startswith(_LISTED) else ()
        rest = (run[max(0, -(-(end - run.start) // run.step)) :] for run in listed)
        return ",".join(_text(run) for run in rest if run)

    def _runs(self) -> list[range]:
        found = []
        for part in self.text.removeprefix(_LISTED).split(","):
            matched = _RUN.fullmatch(part)
            if matched is None:
                raise ValueError(part)
            first = int(matched[1])
            last, every = int(matched[2] or first), int(matched[3] or 1)
            if last < first or every < 1:
                raise ValueError(part)
            found.append(range(first, last + 1, every))
        return found

    def __str__(self) -> str:
        """Return the text."""
        return self.text


ALL_LAYERS = Share()


def extent(layers: Sequence[int], start: int, stack: int, selected: str = "shared") -> str:
    """Return in words which layers are ``selected`` of a rank's ``stack`` decoder layers from ``start`` on."""
    whole = f"layers {start}-{start + stack - 1}"
    if len(layers) == stack:
        return whole
    return f"{len(layers)} of {whole if start else f'{stack} layers'} {selected}"


def runs(layers: tuple[int, ...]) -> str:
    """Return ascending layers as runs, in the form that ``layers:`` takes: ``0-40:2,43``."""
    found = []
    rest = list(layers)
    while rest:
        first = rest.pop(0)
        if len(rest) < 2 or rest[1] - rest[0] != rest[0] - first:  # noqa: PLR2004 - a run has three layers or more
            step = rest[0] - first if rest else 0
            if step != 1:
                found.append(str(first))
                continue
        every, last = rest[0] - first, first
        while rest and rest[0] - last == every:
            last = rest.pop(0)
        found.append(_text(range(first, last + 1, every)))
    return ",".join(found)


def _text(run: range) -> str:
    if len(run) == 1:
        return str(run[0])
    return f"{run[0]}-{run[-1]}" + (f":{run.step}" if run.step > 1 else "")
