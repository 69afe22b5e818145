"""Ranks that died."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Rule


class Died(Rule):
    """Ranks whose process ended without closing its ring."""

    kinds = ("died",)
    about = About.CONDITION

    def find(self, case: Case) -> Iterator[Finding]:
        """Name all dead ranks in one finding. It comes first, because all figures are from before the death."""
        facts = case.facts
        dead = sorted(key.rank for key, rank in case.ranks.items() if rank.died)
        if dead:
            ranks = units.listed("Rank", [facts.named(rank) for rank in dead])
            of_those = f"The figures of {'that rank' if len(dead) == 1 else 'these ranks'}"
            figures = "All figures" if facts.lockstep else of_those
            yield Finding("died", Level.BAD, f"{ranks} died. {figures} are from the steps before.", ranks=tuple(dead))
