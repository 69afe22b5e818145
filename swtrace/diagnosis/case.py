"""What rules look at: one series over some steps, and the state of its ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from swtrace.diagnosis.standing import Standing, standings
from swtrace.ledger import change
from swtrace.ledger.facts import Outcome, SeriesFacts, SeriesRankFacts, StepFacts
from swtrace.ledger.planning.repair import Repair, Saving, saving
from swtrace.observing.observation import ObservedRank
from swtrace.trace.identity import RankKey
from swtrace.units import milliseconds


@dataclass(frozen=True)
class Case:
    """One series, over some steps."""

    facts: SeriesFacts
    """Summed over the steps."""
    steps: Sequence[StepFacts] = ()
    """Finished steps, oldest first. Without them, rules only find what sums show."""
    ranks: Mapping[RankKey, ObservedRank] = field(default_factory=dict)
    """The series' ranks and their rings now. Empty if the steps were selected from a longer time."""

    @classmethod
    def of(cls, facts: SeriesFacts, steps: Sequence[StepFacts], ranks: Collection[ObservedRank]) -> Case:
        """Return the case of a series among the ranks of an observation."""
        of_run, members = facts.key.run_id, facts.key.group_ranks
        return cls(
            facts, steps, {rank.key: rank for rank in ranks if rank.key.run_id == of_run and rank.key.rank in members}
        )

    @cached_property
    def standings(self) -> Mapping[RankKey, Standing]:
        """What each rank is doing now, without those whose rings do not show it."""
        return standings(self.ranks.values())

    # -- which steps ---------------------------------------------------------------------------

    @cached_property
    def regular(self) -> list[StepFacts]:
        """The steps that no rank aborted and that lack no record."""
        return [step for step in self.steps if not step.partial and not step.aborted]

    @cached_property
    def judged(self) -> Sequence[StepFacts]:
        """The regular steps that stand for the series: in a pull series, those of the most stalled rank."""
        return judged_steps(self.facts, self.regular)

    def offloading(self) -> Iterator[tuple[SeriesRankFacts, list[StepFacts]]]:
        """Yield each rank whose layers are copied from host memory, and its regular steps."""
        for rank in self.facts.ranks:
            if rank.info.offloaded:
                yield rank, [step for step in self.regular if step.of_rank in {None, rank.info.rank_in_group}]

    @cached_property
    def waited(self) -> int:
        """Number of waits, of any outcome but those for a rank's own layers and prefilled windows."""
        counted = (Outcome.ON_TIME, Outcome.STALLED, Outcome.UNTIMED)
        return sum(rank.totals.waits[outcome] for rank in self.facts.ranks for outcome in counted)

    @property
    def bypassed(self) -> bool:
        """Whether no step ever waited for a layer, though steps have ended."""
        return self.facts.shared and not self.waited and any(rank.totals.unwaited_steps for rank in self.facts.ranks)

    @property
    def has_steps(self) -> bool:
        """Whether there are finished steps to judge."""
        recents = [rank.recent for rank in self.facts.ranks]
        if self.facts.shared:
            return not self.bypassed and any(recent.stall_ratio is not None for recent in recents)
        return any(recent.steps for recent in recents)

    # -- words and numbers ---------------------------------------------------------------------

    @property
    def on(self) -> str:
        """The words before a sentence about one rank's steps; empty if all ranks run the steps."""
        return "" if self.only_rank is None else f"On rank {self.only_rank}, "

    @property
    def only_rank(self) -> int | None:
        """The global rank whose steps are judged, in a pull series; None if all ranks run the steps."""
        only = self.judged[-1].only_rank if self.judged else None
        return None if only is None else only.rank

    def global_ranks(self, *group_ranks: int) -> tuple[int, ...]:
        """Return the global numbers of group ranks."""
        return tuple(self.facts.key.group_ranks[rank] for rank in group_ranks)

    def since(self, steps: Sequence[StepFacts], values: npt.NDArray[np.float64]) -> tuple[int | None, int]:
        """Return from which of these steps a figure of each has been as high as now, and the UNIX time of that step.

        None and 0 if it was as high before.
        """
        first = change.since(values)
        return (None, 0) if first is None else (steps[first].step, self.began_ns(steps[first]))

    def saving(self, repair: Repair, since_step: int | None = None) -> Saving | None:
        """Return what a repair would save of step time, as of the steps since the trouble began; None if unknown."""
        recent = [step for step in self.regular if since_step is None or step.step >= since_step]
        return saving(recent, repair)

    @cached_property
    def elapsed_ns(self) -> int:
        """How long the regular steps took in total, each on the rank with the longest."""
        return sum(int(step.duration_ns.max(initial=0)) for step in self.regular)

    @cached_property
    def _clocks(self) -> npt.NDArray[np.int64]:
        return self.facts.clock_numbers()

    def bounds_ns(self, step: StepFacts, rank: int) -> npt.NDArray[np.int64]:
        """Return ``[rank]``: by how much differences between a group rank's instants and the others' may be off."""
        bound = step.clock_bound_ns
        return np.where(self._clocks == self._clocks[rank], 0, bound + bound[rank])

    def unix_ns(self, group_rank: int, monotonic_ns: int) -> int:
        """Return the UNIX time of an instant of a group rank's own clock; 0 if unknown."""
        rank = self.ranks.get(RankKey(self.facts.key.run_id, self.facts.key.group_ranks[group_rank]))
        return monotonic_ns + rank.unix_offset_ns if rank is not None and rank.unix_offset_ns else 0

    def began_ns(self, step: StepFacts) -> int:
        """Return the UNIX time at which a step began on the first rank that ended it; 0 if unknown."""
        ended = np.flatnonzero(step.ended)
        if not len(ended):
            return 0
        first = int(ended[step.begin_ns[ended].argmin()])
        return self.unix_ns(first, int(step.begin_ns[first] - step.clock_shift_ns[first]))


def judged_steps(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Sequence[StepFacts]:
    """Return the steps that stand for the series: in a pull series, those of the most stalled rank that has any."""
    if facts.lockstep:
        return steps
    ratios = {rank.info.rank_in_group: rank.recent.stall_ratio or 0.0 for rank in facts.ranks}
    worst = max({step.of_rank for step in steps if step.of_rank in ratios}, key=lambda rank: ratios[rank], default=None)
    return [step for step in steps if step.of_rank == worst]


def bounded(bound_ns: int) -> str:
    """Return the bound of a figure that compares ranks, for a sentence; empty if one clock timed them."""
    return f" (clock bound {milliseconds(bound_ns)})" if bound_ns else ""
