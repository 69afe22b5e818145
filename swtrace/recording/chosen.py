"""The steps of a recording that somebody wants summed up: tables and verdicts over the same ones.

A ledger sums up the last steps as they come. Of a whole recording, or of a part of it, the sums are taken anew, in
one pass. Some sentences of a verdict need the steps themselves: for them the last steps are kept, as many as memory
should hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from swtrace.errors import EmptySelectionError
from swtrace.ledger.facts import LedgerFacts, SeriesFacts, SeriesKey, StepFacts
from swtrace.ledger.recent import RecentSteps, Total
from swtrace.selection import Selection
from swtrace.trace.identity import RankKey

_KEPT_CELLS = 1 << 19
"""Ranks times layers times steps: 90 MB."""
_KEPT_STEPS = 64
"""At least so many steps are kept."""


@dataclass(slots=True)
class _Chosen:
    kept: deque[StepFacts]
    sums: dict[int, Total] = field(default_factory=dict)
    """By group rank."""
    steps: int = 0


class Chosen:
    """Sums over the steps that a selection means.

    Args:
        selection: Which steps.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.finished = 0
        """Finished steps of all series, before anything was left out."""
        self._series: dict[SeriesKey, _Chosen] = {}

    def among(self, steps: Iterable[StepFacts]) -> Iterator[StepFacts]:
        """Yield the steps that are meant, and sum them up.

        Raises:
            EmptySelectionError: there are finished steps, and none of them is meant.
        """
        for picked in self.selection.pick(self._counted(steps)):
            step = picked.step
            into = self._series.get(step.series)
            if into is None:
                most = max(_KEPT_STEPS, _KEPT_CELLS // max(1, step.present.size))
                into = self._series[step.series] = _Chosen(deque(maxlen=most))
            into.kept.append(step)
            into.steps += 1
            for rank, sums, layer_bytes in picked.sums():
                into.sums.setdefault(rank, Total()).add(sums, layer_bytes)
            yield step
        if self.finished and not self._series:
            raise EmptySelectionError(
                f"none of the {self.finished} finished steps is selected by --steps and --warmup (here: {self})"
            )

    def facts(self, facts: LedgerFacts) -> LedgerFacts:
        """Return a ledger's facts with these sums in the place of those over the last steps."""
        return replace(facts, series=tuple(self._summed(series) for series in facts.series))

    def history(self, key: SeriesKey) -> tuple[StepFacts, ...]:
        """Return the last of the steps meant, oldest first."""
        found = self._series.get(key)
        return () if found is None else tuple(found.kept)

    def partly(self) -> str:
        """Say what is about fewer steps than the sums are; empty if nothing is."""
        found = [each for each in self._series.values() if each.steps > len(each.kept)]
        if not found:
            return ""
        least = min(len(each.kept) for each in found)
        return f"What is said about layers, links and other prefetch steps covers only the last {least} of these steps."

    def __str__(self) -> str:
        """Return the selection in words."""
        wanted = self.selection.steps
        parts = []
        if wanted is not None:
            parts.append(f"of steps {wanted.start or 0}:{'' if wanted.stop is None else wanted.stop}")
        if self.selection.warmup:
            parts.append(f"after {self.selection.warmup} warm-up step{'s' if self.selection.warmup > 1 else ''}")
        return ", ".join(parts)

    def _counted(self, steps: Iterable[StepFacts]) -> Iterator[StepFacts]:
        for step in steps:
            self.finished += 1
            yield step

    def _summed(self, facts: SeriesFacts) -> SeriesFacts:
        found = self._series.get(facts.key, _Chosen(deque()))
        ranks = len(facts.key.group_ranks)
        recent = RecentSteps(max(1, len(found.kept)), ranks, facts.ranks[0].info.layer_bytes if facts.ranks else 0)
        recent.add(found.kept, (step.aborted for step in found.kept))
        return replace(
            facts,
            ranks=tuple(
                replace(rank, recent=found.sums.get(rank.info.rank_in_group, Total()).recent()) for rank in facts.ranks
            ),
            steps=found.steps,
            straggler=recent.straggler(tuple(RankKey(facts.key.run_id, rank) for rank in facts.key.group_ranks)),
        )
