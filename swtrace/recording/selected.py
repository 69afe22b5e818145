"""Sums over selected steps of a recording, so that tables and verdicts cover the same steps.

A ledger sums up only the latest steps. For a whole recording, or a part of it, this module computes the sums again
in one pass. Some sentences of a verdict need the steps themselves; for these, the last steps are kept, up to a bound
on memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from swtrace.errors import EmptySelectionError
from swtrace.ledger.comparison import covers, plan_of
from swtrace.ledger.facts import LedgerFacts, SeriesFacts, SeriesKey, StepFacts
from swtrace.ledger.recent import RecentSteps, Total
from swtrace.ledger.stragglers import stragglers_in
from swtrace.selection import Selection
from swtrace.units import counted

_KEPT_CELLS = 1 << 19
"""Most ranks times layers times steps to keep: 90 MB."""
_KEPT_STEPS = 64
"""Keep at least this many steps."""


@dataclass(slots=True)
class _SelectedSeries:
    kept: deque[StepFacts]
    sums: dict[int, Total] = field(default_factory=dict)
    """By group rank."""
    as_planned: dict[int, Total] = field(default_factory=dict)
    """The same, over those steps that the series' plan is about."""
    steps: Counter[int | None] = field(default_factory=Counter)
    """By the group rank that runs them, in a pull series."""


class SelectedSteps:
    """Sums over the selected steps.

    Args:
        selection: The steps to sum up.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.finished = 0
        """Number of finished steps of all series, before the selection."""
        self._series: dict[SeriesKey, _SelectedSeries] = {}

    def among(self, steps: Iterable[StepFacts]) -> Iterator[StepFacts]:
        """Yield the selected steps and sum them up.

        Raises:
            EmptySelectionError: there are finished steps, but none is selected.
        """
        for picked in self.selection.pick(self._counted(steps)):
            step = picked.step
            into = self._series.get(step.series)
            if into is None:
                most = max(_KEPT_STEPS, _KEPT_CELLS // max(1, step.present.size))
                into = self._series[step.series] = _SelectedSeries(deque(maxlen=most))
            into.kept.append(step)
            into.steps[step.of_rank] += 1
            planned = plan_of(step.infos)
            is_covered = planned is not None and covers(planned, step)
            for rank, sums, layer_bytes in picked.sums():
                into.sums.setdefault(rank, Total()).add(sums, layer_bytes)
                if is_covered:
                    into.as_planned.setdefault(rank, Total()).add(sums, layer_bytes)
            yield step
        if self.finished and not self._series:
            options = "--steps and --warmup" if self.selection.phase is None else "--steps, --warmup and --phase"
            raise EmptySelectionError(
                f"none of the {self.finished} finished steps is selected by {options} (here: {self})"
            )

    def facts(self, facts: LedgerFacts) -> LedgerFacts:
        """Return a ledger's facts with these sums in place of the sums over the last steps."""
        return replace(facts, series=tuple(self._summed(series) for series in facts.series))

    def history(self, key: SeriesKey) -> tuple[StepFacts, ...]:
        """Return the last selected steps, oldest first."""
        found = self._series.get(key)
        return () if found is None else tuple(found.kept)

    def coverage_note(self) -> str:
        """Return a sentence on what covers fewer steps than the sums do; empty if nothing does."""
        found = [each for each in self._series.values() if each.steps.total() > len(each.kept)]
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
            parts.append(f"after {counted(self.selection.warmup, 'warm-up step')}")
        if self.selection.phase is not None:
            parts.append(f"of phase {self.selection.phase}")
        return ", ".join(parts)

    def _counted(self, steps: Iterable[StepFacts]) -> Iterator[StepFacts]:
        for step in steps:
            self.finished += 1
            yield step

    def _summed(self, facts: SeriesFacts) -> SeriesFacts:
        found = self._series.get(facts.key, _SelectedSeries(deque()))
        ranks = len(facts.key.group_ranks)
        recent = RecentSteps(max(1, len(found.kept)), ranks, facts.ranks[0].info.layer_bytes if facts.ranks else 0)
        recent.add(found.kept, (step.aborted for step in found.kept))
        planned = plan_of(rank.info for rank in facts.ranks)
        return replace(
            facts,
            ranks=tuple(
                replace(
                    rank,
                    recent=found.sums.get(rank.info.rank_in_group, Total()).recent(),
                    recent_as_planned=None
                    if planned is None
                    else found.as_planned.get(rank.info.rank_in_group, Total()).recent(),
                )
                for rank in facts.ranks
            ),
            steps=max(found.steps.values(), default=0),
            stragglers=stragglers_in(found.kept, facts.key),
        )
