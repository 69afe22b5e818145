"""Copies that slow each other down."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.readers import readers
from swtrace.units import milliseconds

_CROWDED_FACTOR = 1.25
"""By how much longer copies must take for the number of readers to be worth a sentence."""
_CROWDED_COPIES = 16
"""Fewer copies prove nothing."""


class Crowded(Rule):
    """Copies that take longer while several ranks read from their owner."""

    kinds = ("crowded",)
    about = About.CAUSE
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about the judged rank of a pull series."""
        if case.facts.offloaded:  # each rank reads its own memory
            return
        known = readers(case.facts, case.regular)
        if known is None or not case.judged:
            return
        took: dict[int, list[int]] = {}
        for step in case.judged:
            for count, transfer_ns in zip(known.of(step).tolist(), step.transfer_ns.sum(axis=0).tolist(), strict=True):
                took.setdefault(count, []).append(transfer_ns)
        enough = {count: of for count, of in took.items() if count and len(of) >= _CROWDED_COPIES}
        if len(enough) < 2:  # noqa: PLR2004 - nothing to compare with
            return
        least, most = min(enough), max(enough)
        least_ns, most_ns = float(np.mean(enough[least])), float(np.mean(enough[most]))
        if most_ns < _CROWDED_FACTOR * least_ns:
            return
        otherwise = "alone" if least == 1 else f"while {least} do"
        yield Finding(
            "crowded",
            Level.NOTE,
            f"{case.on}copies take {milliseconds(most_ns)} while {most} ranks read from one owner at once, and "
            f"{milliseconds(least_ns)} {otherwise}.",
            {"readers": most, "transfer_ns": most_ns, "fewest_readers": least, "fewest_transfer_ns": least_ns},
            ranks=() if case.only_rank is None else (case.only_rank,),
        )
