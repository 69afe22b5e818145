"""Ranks that compute longer than the others."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.units import milliseconds


class Stragglers(Rule):
    """The rank that the ledger names."""

    kinds = ("straggler",)
    about = About.CAUSE
    needs = Needs.STEPS
    explains = ("stalled", "partly_hidden", "late_issue", "worst_layer")

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if the ledger names a straggler."""
        straggler = case.facts.straggler
        if straggler is None:
            return
        yield Finding(
            "straggler",
            Level.BAD,
            f"Rank {case.facts.named(straggler.rank.rank)} is the straggler: {milliseconds(straggler.excess_ns)} of "
            f"excess compute on the critical path (median; {units.ratio(straggler.share)} of the median step time); "
            f"the next rank has {milliseconds(straggler.next_excess_ns)}.",
            {
                "excess_ns": straggler.excess_ns,
                "next_excess_ns": straggler.next_excess_ns,
                "share": straggler.share,
                "consistency": straggler.consistency,
            },
            ranks=(straggler.rank.rank,),
            advice="Check that rank's host: clock speed, temperature, other processes, and the rank's share of "
            "requests.",
        )
