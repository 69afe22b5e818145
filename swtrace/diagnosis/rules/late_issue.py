"""The rank that issues last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case, bounded
from swtrace.diagnosis.finding import HIDDEN_BELOW, Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.units import milliseconds

_LATE_SHARE = 0.6
"""A rank is named as the last to issue only if it causes at least this share of the skew ..."""
_LATE_STEPS = 0.6
"""... and most of the skew in this share of the steps: a single slow step makes any rank late."""


class LateIssue(Rule):
    """The rank that causes most of the skew. This is a proximate cause, and the advice says so."""

    kinds = ("late_issue",)
    about = About.CAUSE
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if one rank causes most of the skew, and the skew matters."""
        steps = case.regular
        blamed: dict[int, tuple[float, int, int]] = {}
        most_late: Counter[int] = Counter()
        total = 0.0
        for step in steps:
            skew = step.cause_ns[CAUSES.index(Cause.SKEW)]
            held = (skew > 0) & ~step.on_time
            total += float(skew[held].sum())
            known = held & (step.late_rank >= 0)
            if known.any():
                most_late[int(np.bincount(step.late_rank[known], skew[known]).argmax())] += 1
            for late in np.unique(step.late_rank[known]).tolist():
                delayed = held & (step.late_rank == late)
                held_ns, count, bound_ns = blamed.get(int(late), (0.0, 0, 0))
                bound_ns = max(bound_ns, int(case.bounds_ns(step, late)[delayed.any(axis=1)].max()))
                blamed[int(late)] = held_ns + float(skew[delayed].sum()), count + int(delayed.sum()), bound_ns
        receivers = max((int(step.ended.sum()) for step in steps), default=1)
        if not blamed or total < HIDDEN_BELOW * case.elapsed_ns:
            return
        late, (held_ns, count, bound_ns) = max(blamed.items(), key=lambda item: item[1][0])
        if held_ns < _LATE_SHARE * total or most_late[late] < _LATE_STEPS * len(steps):
            return
        (rank,) = case.global_ranks(late)
        yield Finding(
            "late_issue",
            Level.NOTE,
            f"Rank {case.facts.named(rank)} issues last and causes {units.ratio(held_ns / total)} of the skew: "
            f"{'at least ' if bound_ns else ''}{milliseconds(held_ns / count)} per delayed wait{bounded(bound_ns)}, "
            f"{milliseconds(held_ns / len(steps) / max(1, receivers - 1))} per step on each other rank.",
            {
                "skew_share": held_ns / total,
                "mean_skew_ns": held_ns / count,
                "waits": count,
                "clock_bound_ns": bound_ns,
            },
            ranks=(rank,),
            advice="This is the proximate cause: the rank may be late only because it stalled. If it is slow itself, "
            "it is also named as the straggler.",
        )
