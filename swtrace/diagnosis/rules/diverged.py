"""Ranks whose steps no longer match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Rule
from swtrace.diagnosis.standing import Doing, Standing

_CLOCKS_APART_NS = 100_000_000
"""Instants of two hosts are compared by their calendar clocks, which may differ by this much."""
_LAUNCHED_AHEAD = 64
"""Steps that a host may launch before its device runs them."""


class Diverged(Rule):
    """Ranks that are further apart than the series lets them be."""

    kinds = ("diverged",)
    about = About.CONDITION
    explains = ("stalled", "partly_hidden", "straggler", "entry_skew", "slow_link", "slow_source", "late_issue")
    """Figures that compare the ranks of different steps are wrong."""

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about ranks that number their steps otherwise, or else about ranks that are far apart."""
        if not (case.facts.lockstep and case.facts.shared):
            return
        numbered = list(_numbered_otherwise(case))
        yield from numbered or self._far_apart(case)

    def _far_apart(self, case: Case) -> Iterator[Finding]:
        """Compare the broadcasts that the first and the last rank have issued.

        A rank waits for its send of a layer before it sends it again, and for the other ranks' sends before it uses
        them. So between two ranks there is at most one lap of the circle for each of these.
        """
        facts = case.facts
        among = [each for each in case.standings.values() if each.doing is not Doing.GONE]
        counted = [(issued, each) for each in among if (issued := each.issued(facts.ranks[0].info)) is not None]
        if len(counted) < 2:  # noqa: PLR2004 - there is nothing to compare
            return
        (least, behind), (most, ahead) = (pick(counted, key=lambda one: one[0]) for pick in (min, max))
        info = ahead.info
        apart, laps = most - least, 2 + (_LAUNCHED_AHEAD if info.clock == "device" else 0)
        lap = info.num_layers + info.prefetch_step + 1
        if apart <= laps * lap or apart <= (laps + _laps_between(case, behind, ahead)) * lap:
            return
        names = [facts.named(each.key.rank) for each in (behind, ahead)]
        yield Finding(
            "diverged",
            Level.BAD,
            f"Ranks {names[0]} and {names[1]} no longer run the same steps: "
            f"rank {names[0]} is at step {behind.step:,}, rank {names[1]} at step {ahead.step:,}.",
            {"issued_behind": least, "issued_ahead": most},
            ranks=(behind.key.rank, ahead.key.rank),
            layer=behind.layer,
            advice="All ranks of a series must be started together and run the same steps. If a rank was restarted, "
            "restart all of its group.",
            since_step=behind.step,
            evidence=tuple(
                f"Rank {name} has issued {issued:,} broadcasts and is {each.activity}."
                for name, issued, each in zip(names, (least, most), (behind, ahead), strict=True)
            ),
        )


def _numbered_otherwise(case: Case) -> Iterator[Finding]:
    """Find ranks whose broadcasts and steps do not have the numbers that those of most ranks have."""
    facts = case.facts
    ahead = {rank.rank.rank: rank.operations_ahead for rank in facts.ranks if rank.last_step is not None}
    usual = Counter(ahead.values()).most_common(1)[0][0] if ahead else 0
    odd = {rank: number - usual for rank, number in ahead.items() if number != usual}
    if not odd:
        return
    layers = facts.ranks[0].info.num_layers
    named = [facts.named(rank) for rank in odd]
    yield Finding(
        "diverged",
        Level.BAD,
        f"{units.listed('Rank', named)} and the other ranks no longer run the same steps: the same broadcasts belong "
        "to steps with other numbers there.",
        {"ranks": len(odd)},
        ranks=tuple(odd),
        advice="All ranks of a series must run the same steps. Find out which step that rank skipped or ran alone; "
        "until it is restarted with its group, figures that compare ranks are wrong.",
        evidence=tuple(
            f"Rank {name} has issued {abs(number):,} {'more' if number > 0 else 'fewer'} broadcasts than its step "
            f"number says, compared with the other ranks: {abs(number) / layers:.3g} steps."
            for name, number in zip(named, odd.values(), strict=True)
        ),
    )


def _laps_between(case: Case, behind: Standing, ahead: Standing) -> int:
    """Return how many steps the rank ahead may have run after the other one's ring was read."""
    later_ns = ahead.rank.ring.taken_ns - behind.rank.ring.taken_ns
    if ahead.rank.identity.clock != behind.rank.identity.clock:
        later_ns += ahead.rank.unix_offset_ns - behind.rank.unix_offset_ns + _CLOCKS_APART_NS
    shortest_ns = min((int(step.duration_ns[step.ended].min()) for step in case.steps if step.ended.any()), default=0)
    return max(0, later_ns) // max(shortest_ns, 100_000) + 1
