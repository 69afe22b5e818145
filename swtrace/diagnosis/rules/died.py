"""Ranks that died."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Rule
from swtrace.diagnosis.standing import blockers, standing, waits_in_words


class Died(Rule):
    """Ranks whose process ended without closing its ring."""

    kinds = ("died",)
    about = About.CONDITION

    def find(self, case: Case) -> Iterator[Finding]:
        """Name all dead ranks in one finding, what they were doing, and who waits for them."""
        facts = case.facts
        dead = sorted((rank for rank in case.ranks.values() if rank.died), key=lambda rank: rank.ring.down_since_ns)
        if not dead:
            return
        last = [(rank.key.rank, standing(rank, before_its_end=True)) for rank in dead]
        among = case.standings
        gone = {rank.key for rank in dead}
        held = [each for each in among.values() if gone.intersection(blockers(each, among)[0])]
        ranks = units.listed("Rank", [facts.named(rank) for rank, _ in last])
        of_those = f"The figures of {'that rank' if len(dead) == 1 else 'these ranks'}"
        figures = "All figures" if facts.lockstep else of_those
        first, down_ns = last[0][1], dead[0].ring.down_since_ns
        yield Finding(
            "died",
            Level.BAD,
            f"{ranks} died. {figures} are from the steps before.",
            ranks=tuple(rank for rank, _ in last),
            layer=None if first is None else first.layer,
            since_ns=down_ns + dead[0].unix_offset_ns if down_ns and dead[0].unix_offset_ns else 0,
            since_step=None if first is None else first.step,
            evidence=(
                *(f"When rank {facts.named(rank)} died, it was {each.activity}." for rank, each in last if each),
                *(waits_in_words(each, among, facts) for each in held),
            ),
            advice="The rank's own log says why, or the kernel's log if memory ran out.",
        )
