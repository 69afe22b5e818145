"""An observation narrowed to a selection: what the views draw, and what ``--once`` prints.

The numbers are the ledger's. If a phase is selected, its sums (:class:`~swtrace.ledger.recent.RecentSteps`)
are taken over the last steps of this phase. Only the step rate, a count over a time, is computed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from swtrace import units
from swtrace.diagnosis.case import judged_steps
from swtrace.diagnosis.diagnosis import Diagnosis, Verdict, of_hosts, verdict
from swtrace.diagnosis.finding import Finding
from swtrace.ledger.alignment import AlignedClock
from swtrace.ledger.comparison import covers, plan_of
from swtrace.ledger.facts import RankFacts, Recent, SeriesFacts, SeriesKey, SeriesRankFacts, StepFacts
from swtrace.ledger.recent import RecentSteps, steps_each
from swtrace.ledger.stragglers import stragglers_in
from swtrace.observing import Observation, ObservedRank
from swtrace.trace.identity import RankKey
from swtrace.trace.marks import WindowState
from swtrace.trace.schema import Phase, StepFlag
from swtrace.units import counted

_IDLE_NS = 2_000_000_000
_IDLE_STEPS = 20
_BEHIND_STEPS = 64
_Number = TypeVar("_Number", bound=np.generic)


class RankState(StrEnum):
    """How a rank is doing."""

    LIVE = "live"
    BEHIND = "behind"
    """Many of its records are still unread."""
    JOINED = "joined"
    """It has a ring, and no step has finished."""
    IDLE = "idle"
    """It is alive and writes nothing: no requests, or it hangs."""
    CLOSED = "closed"
    """It is alive and closed the series."""
    ENDED = "ended"
    DIED = "died"
    """It released its lock without closing its ring."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The selection that the views show; None selects all, or as ``run`` the newest that is alive and shares."""

    run: str | None = None
    series: SeriesKey | str | None = None
    """One series, or a name that several may have."""
    rank: int | None = None
    phase: Phase | None = None
    text: str = ""
    """Words that a row must all match: a number is a rank or a pid, other text a part of series, host or state."""

    def wants(self, key: SeriesKey) -> bool:
        """Return whether a series is selected."""
        return self.series is None or self.series in {key, key.name}

    def shows(self, row: RankRow) -> bool:
        """Return whether a row is selected."""
        if self.rank not in {None, row.rank}:
            return False
        if not (words := self.text.casefold().split()):
            return True
        names = f"rank pid {row.series.name} {row.host} {row.state}".casefold()
        return all(word in names or word in {str(row.rank), row.pid} for word in words)


@dataclass(frozen=True)
class RankRow:
    """One rank of one series: a row of the overview."""

    series: SeriesKey
    group_rank: int
    facts: SeriesRankFacts
    observed: ObservedRank | None
    state: RankState
    idle_ns: int
    """For how long it has written nothing; 0 if that is unknown."""
    windows: tuple[WindowState, ...]
    past: _Past

    @property
    def rank(self) -> int:
        """Global rank."""
        return self.facts.rank.rank

    @property
    def pid(self) -> str:
        """The rank's process id in its own pid namespace; empty if it is unknown."""
        return str(self.observed.identity.pid) if self.observed is not None else ""

    @property
    def host(self) -> str:
        """The rank's host; empty if it is unknown."""
        return self.observed.identity.host if self.observed is not None else ""

    @cached_property
    def place(self) -> tuple[str, str]:
        """The rank's host and clock, which differ for ranks of one host in different time namespaces."""
        return ("", "") if self.observed is None else (self.observed.identity.host, self.observed.identity.clock)

    @property
    def recent(self) -> Recent:
        """The sums over the last steps."""
        return self.facts.recent

    @cached_property
    def step_rate(self) -> float | None:
        """Steps per second, from the end of the first to the end of the last recent step."""
        past, rank = self.past, self.group_rank
        ended = np.flatnonzero(past.ended[:, rank])
        if len(ended) < 2:  # noqa: PLR2004 - a rate needs two ends
            return None
        first, last = ended[0], ended[-1]
        elapsed = int(past.end_ns[last, rank] - past.end_ns[first, rank])
        steps = len(ended) - 1 if past.counted else int(past.number[last] - past.number[first])
        return steps * 1e9 / elapsed if elapsed > 0 else None

    @cached_property
    def stall_ratios(self) -> tuple[float, ...]:
        """Stall ratio of each recent step that is whole and was not aborted, oldest first; none if only observed."""
        if not self.facts.info.shared:
            return ()
        return tuple(self.past.stall_ratio[self.past.regular[:, self.group_rank], self.group_rank].tolist())

    @property
    def step_ns(self) -> float | None:
        """Mean step time."""
        return self.recent.step_ns / self.recent.steps if self.recent.steps else None

    @property
    def lost(self) -> int:
        """Records that this view missed since it began: overwritten, damaged, or skipped to keep up."""
        return 0 if self.observed is None else self.observed.lost


@dataclass(frozen=True, repr=False)
class Host:
    """One of several hosts whose ranks are shown."""

    name: str
    rows: tuple[RankRow, ...]
    clocks: frozenset[AlignedClock | None]
    """How the instants of its ranks are aligned with those of other hosts; None on the reference clock."""

    @cached_property
    def place(self) -> tuple[str, str]:
        """The place of its ranks."""
        return self.rows[0].place

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len({row.rank for row in self.rows})

    @property
    def most_stalled(self) -> RankRow:
        """The row with the highest stall ratio."""
        return max(self.rows, key=lambda row: row.recent.stall_ratio or 0.0)

    @property
    def clock(self) -> str:
        """What is known about its clock, in words; empty if no series compares it with another clock."""
        aligned = [clock for clock in self.clocks if clock is not None]
        if not aligned:
            return "reference clock" if self.clocks else ""
        if any(clock.offset_ns is None for clock in aligned):
            return "clock unknown"
        worst = max(aligned, key=attrgetter("bound_ns"))
        return f"clock ±{units.duration(worst.bound_ns)} by {worst.method}"


@dataclass(frozen=True, repr=False)
class SeriesView:
    """One selected series."""

    facts: SeriesFacts
    steps: tuple[StepFacts, ...]
    rows: tuple[RankRow, ...]
    """The selected ranks, by host."""

    @property
    def key(self) -> SeriesKey:
        """The key of the series."""
        return self.facts.key

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.facts.ranks[0].info.num_layers

    @property
    def title(self) -> str:
        """Name and layers."""
        info = self.facts.ranks[0].info
        return f"{info.name} · {info.extent}"

    @cached_property
    def verdict(self) -> Verdict:
        """All findings about it. Computing them takes some milliseconds."""
        return verdict(self.facts, self.steps, self._observed)

    @cached_property
    def headline(self) -> Finding:
        """The headline alone, always from the same facts as the rows."""
        return verdict(self.facts, ranks=self._observed).headline

    @cached_property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts of its rows, in the same order; empty if all rows are on one host."""
        return _hosts((self,))

    @property
    def judged(self) -> Sequence[StepFacts]:
        """The steps that stand for it: in a pull series, those of the most stalled rank."""
        return judged_steps(self.facts, self.steps)

    @property
    def shape(self) -> str:
        """How many ranks and layers it has."""
        stack = self.facts.ranks[0].info.stack_layers
        of = "" if self.layers == stack else f"{self.layers} of "
        return f"{counted(len(self.key.group_ranks), 'rank')} x {of}{counted(stack, 'layer')}"

    @property
    def stall_ratio(self) -> float:
        """The stall ratio of the most stalled rank."""
        return max((row.recent.stall_ratio or 0.0 for row in self.rows), default=0.0)

    @property
    def _observed(self) -> list[ObservedRank]:
        return [row.observed for row in self.rows if row.observed is not None]

    def layer(self, position: int) -> int:
        """Return the layer at a position."""
        return self.facts.ranks[0].info.layers[position]

    def rank_name(self, group_rank: int, noun: str = "rank") -> str:
        """Return ``rank 3``, or ``rank 3 (host-1)`` if the series has several hosts."""
        return f"{noun} {self.facts.named(self.key.group_ranks[group_rank])}"

    def alignment(self, step: StepFacts) -> tuple[str, int] | None:
        """Return what aligns the ranks' clocks in a step, and the largest error of a difference between two ranks.

        None if the ranks share one clock, or if their clocks are not aligned.
        """
        aligned = self.aligned if step.comparable else ()
        if not aligned:
            return None
        bounds = sorted(int(step.clock_bound_ns[list(clock.group_ranks)].max()) for clock in aligned)
        return " and ".join(sorted({str(clock.method) for clock in aligned})), sum(bounds[-2:])

    @property
    def aligned(self) -> tuple[AlignedClock, ...]:
        """Every clock besides that of the first rank; none if its ranks share one clock."""
        return () if self.facts.ranks[0].info.clock == "virtual" else self.facts.alignment

    def group_rank(self, rank: int | None) -> int | None:
        """Return the group rank of a global rank."""
        return self.key.group_ranks.index(rank) if rank is not None and rank in self.key.group_ranks else None


@dataclass(frozen=True, repr=False)
class Picture:
    """Everything that the views draw."""

    observation: Observation
    selection: Filter
    runs: tuple[str, ...]
    """All runs, newest last."""
    run: str | None
    """The run that is shown; None if there is no run, or not the selected one."""
    all_series: tuple[SeriesKey, ...]
    """Every series of that run, to choose from."""
    series: tuple[SeriesView, ...]
    """The selected series that have selected ranks."""

    @cached_property
    def narrowed(self) -> Observation:
        """The observation of the selected series and steps of the run."""
        seen = self.observation.of_runs(() if self.run is None else (self.run,))
        return replace(
            seen,
            facts=replace(seen.facts, series=tuple(series.facts for series in self.series)),
            history={series.key: series.steps for series in self.series},
        )

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What is wrong with it."""
        return Diagnosis(self.narrowed, {series.key: series.verdict for series in self.series}, of_hosts(self.narrowed))

    @cached_property
    def focus(self) -> SeriesView | None:
        """The series that heat map, timeline and windows show: of the selected ones, the one that stalls most."""
        return max(self.series, key=attrgetter("stall_ratio"), default=None)

    @cached_property
    def rows(self) -> tuple[RankRow, ...]:
        """The rows of every selected series."""
        return tuple(row for series in self.series for row in series.rows)

    @cached_property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts of its rows; empty if all rows are on one host."""
        return self.series[0].hosts if len(self.series) == 1 else _hosts(self.series)

    @property
    def ended(self) -> bool:
        """Whether every rank that is shown has ended or died."""
        return bool(self.rows) and all(row.state in {RankState.ENDED, RankState.DIED} for row in self.rows)

    @property
    def unmatched(self) -> str:
        """What is selected but missing, and what there is instead; empty if nothing is missing."""
        wanted = self.selection
        if (self.rows and wanted.phase is None) or not self.runs:
            return ""
        if wanted.run is not None and wanted.run not in self.runs:
            return f"There is no run {wanted.run!r}. Runs: {', '.join(self.runs)}."
        of_run = (facts for facts in self.observation.facts.series if facts.key in self.all_series)
        chosen = [facts for facts in of_run if wanted.wants(facts.key)]
        if wanted.series is not None and self.all_series and not chosen:
            name = wanted.series if isinstance(wanted.series, str) else wanted.series.name
            names = dict.fromkeys(key.name for key in self.all_series)
            return f"Run {self.run} has no series {name!r}. Series: {', '.join(names)}."
        ranks = sorted({rank.rank.rank for facts in chosen for rank in facts.ranks})
        if wanted.rank is not None and ranks and wanted.rank not in ranks:
            return f"Rank {wanted.rank} is not in the selected series. Ranks: {', '.join(map(str, ranks))}."
        if wanted.phase is not None and self.series and not any(series.steps for series in self.series):
            steps = [step for series in self.series for step in self.observation.history.get(series.key, ())]
            seen = Counter(step.common_phase for step in steps)
            there = ", ".join(f"{phase.name.lower()} ({seen[phase]})" for phase in sorted(seen))
            none = f"None of the last steps has phase {wanted.phase.name.lower()}. Phases (steps): {there}."
            return none if there else ""
        missing = f"Nothing matches {wanted.text!r}: no rank or pid, and no part of a series, host or state."
        return missing if wanted.text and ranks and not self.rows else ""


def picture(observation: Observation, selection: Filter) -> Picture:
    """Return an observation narrowed to a selection."""
    observed = {rank.key: rank for rank in observation.ranks}
    runs = _runs(observation)
    run = _preferred(observation, runs) if selection.run is None else selection.run if selection.run in runs else None
    of_run = [facts for facts in observation.facts.series if facts.key.run_id == run and facts.ranks]
    ranks = observation.rank_facts()
    keys = tuple(facts.key for facts in of_run)
    views = (
        _series(facts, observation.history.get(facts.key, ()), observed, ranks, selection)
        for facts in of_run
        if selection.wants(facts.key)
    )
    return Picture(
        observation=observation,
        selection=selection,
        runs=runs,
        run=run,
        all_series=keys,
        series=tuple(view for view in views if view.rows),
    )


def _runs(observation: Observation) -> tuple[str, ...]:
    started: dict[str, int] = {}
    for rank in observation.ranks:
        run = rank.identity.run_id
        started[run] = max(started.get(run, 0), rank.identity.start_time_ns)
    return tuple(sorted(started, key=lambda run: started[run]))


def _preferred(observation: Observation, runs: Sequence[str]) -> str | None:
    """Return the newest run that is alive and shares; else that is alive; else that shared; else the newest."""
    alive = {rank.identity.run_id for rank in observation.ranks if rank.ring.alive}
    shares = {facts.key.run_id for facts in observation.facts.series if facts.ranks}
    return max(runs, key=lambda run: (run in alive, run in shares, runs.index(run)), default=None)


def _series(
    facts: SeriesFacts,
    steps: Sequence[StepFacts],
    observed: Mapping[RankKey, ObservedRank],
    ranks: Mapping[RankKey, RankFacts],
    selection: Filter,
) -> SeriesView:
    if selection.phase is not None:
        steps = [step for step in steps if step.common_phase is selection.phase]
        facts = _resummed(facts, steps)
    past = _Past(steps, len(facts.key.group_ranks), counted=selection.phase is not None)
    rows = [_row(facts.key, rank, past, observed.get(rank.rank), ranks.get(rank.rank)) for rank in facts.ranks]
    places = {place: at for at, place in enumerate(dict.fromkeys(row.place for row in rows))}
    if len(places) > 1:
        rows.sort(key=lambda row: places[row.place])
    return SeriesView(facts=facts, steps=tuple(steps), rows=tuple(filter(selection.shows, rows)))


def _hosts(views: Sequence[SeriesView]) -> tuple[Host, ...]:
    if len({row.place for view in views for row in view.rows}) <= 1:
        return ()
    rows: dict[tuple[str, str], list[RankRow]] = {}
    clocks: dict[tuple[str, str], set[AlignedClock | None]] = {}
    for view in views:
        aligned = {rank: clock for clock in view.aligned for rank in clock.group_ranks}
        for row in view.rows:
            rows.setdefault(row.place, []).append(row)
            clocks.setdefault(row.place, set()).update({aligned.get(row.group_rank)} if aligned else ())
    return tuple(Host(place[0] or "unknown host", tuple(of), frozenset(clocks[place])) for place, of in rows.items())


class _Past:
    """Columns ``[step, rank]`` of the last steps of a series, built when a view asks for them."""

    def __init__(self, steps: Sequence[StepFacts], ranks: int, *, counted: bool) -> None:
        self._steps, self._ranks, self.counted = steps, ranks, counted
        """``counted``: a phase is selected, so the seen steps count and not their numbers."""

    @cached_property
    def number(self) -> npt.NDArray[np.int64]:
        """``[step]``: the step's number."""
        return np.array([step.step for step in self._steps], np.int64)

    @cached_property
    def ended(self) -> npt.NDArray[np.bool_]:
        return self._column(lambda step: step.ended, np.bool_)

    @cached_property
    def regular(self) -> npt.NDArray[np.bool_]:
        flags = self._column(lambda step: step.step_flags, np.uint8)
        return np.asarray(self._column(lambda step: step.whole, np.bool_) & ((flags & StepFlag.ABORTED) == 0), np.bool_)

    @cached_property
    def end_ns(self) -> npt.NDArray[np.int64]:
        return self._column(lambda step: step.end_ns, np.int64)

    @cached_property
    def stall_ratio(self) -> npt.NDArray[np.float64]:
        stall = self._column(lambda step: step.stall_ns.sum(axis=1), np.int64)
        duration = np.maximum(1, self.end_ns - self._column(lambda step: step.begin_ns, np.int64))
        return np.asarray(stall / duration, np.float64)

    def _column(self, of: Callable[[StepFacts], npt.NDArray[Any]], kind: type[_Number]) -> npt.NDArray[_Number]:
        return np.array([of(step) for step in self._steps], kind).reshape(len(self._steps), self._ranks)


def _resummed(facts: SeriesFacts, steps: Sequence[StepFacts]) -> SeriesFacts:
    regular = [step for step in steps if not step.aborted]
    recent = RecentSteps(max(1, len(steps)), len(facts.key.group_ranks), facts.ranks[0].info.layer_bytes)
    recent.add(regular, (False for _ in regular))
    sums = recent.facts()
    planned = plan_of(rank.info for rank in facts.ranks)
    as_planned = None if planned is None else recent.facts(partial(covers, planned))
    return replace(
        facts,
        ranks=tuple(
            replace(
                rank,
                recent=sums[rank.info.rank_in_group],
                recent_as_planned=None if as_planned is None else as_planned[rank.info.rank_in_group],
            )
            for rank in facts.ranks
        ),
        steps=steps_each(regular),
        stragglers=stragglers_in(regular, facts.key),
    )


def _row(
    key: SeriesKey,
    facts: SeriesRankFacts,
    past: _Past,
    observed: ObservedRank | None,
    rank: RankFacts | None,
) -> RankRow:
    idle_ns = _idle(facts, observed, rank)
    entry = observed.entry(facts.info) if observed is not None else None
    return RankRow(
        series=key,
        group_rank=facts.info.rank_in_group,
        facts=facts,
        observed=observed,
        state=_state(facts, observed, idle_ns, closed=entry is not None and entry.closed),
        idle_ns=idle_ns,
        windows=entry.windows if entry is not None else (),
        past=past,
    )


def _idle(facts: SeriesRankFacts, observed: ObservedRank | None, rank: RankFacts | None) -> int:
    if observed is None or rank is None or not rank.last_record_ns or facts.info.clock == "virtual":
        return 0
    return max(0, observed.ring.taken_ns - rank.last_record_ns)


def _state(facts: SeriesRankFacts, observed: ObservedRank | None, idle_ns: int, *, closed: bool) -> RankState:
    if observed is None:
        return RankState.JOINED
    if not observed.ring.alive:
        return RankState.DIED if observed.died else RankState.ENDED
    if observed.ring.statistics.pending > _BEHIND_STEPS * (facts.info.num_layers + 1):
        return RankState.BEHIND
    if closed:
        return RankState.CLOSED
    if facts.last_step is None:
        return RankState.JOINED
    # On a device, only timed steps have instants.
    timed = max(1, facts.totals.steps - sum(facts.totals.untimed_steps.values()))
    step_ns = facts.recent.step_ns // max(1, facts.recent.steps) * facts.totals.steps // timed
    return RankState.IDLE if idle_ns > max(_IDLE_NS, _IDLE_STEPS * step_ns) else RankState.LIVE


def layer_profile(series: SeriesView) -> npt.NDArray[np.float64]:
    """Return each position's mean stall per wait, in ns; of an observed series, the mean time of the layer."""
    steps = series.steps
    if not steps:
        return np.zeros(series.layers)
    if not series.facts.shared:
        took = np.concatenate([step.layer_ns for step in steps])
        return np.asarray(took.sum(axis=0) / np.maximum(1, (took > 0).sum(axis=0)), np.float64)
    stall = np.sum([step.stall_ns.sum(axis=0) for step in steps], axis=0)
    waits = np.sum([step.receiver.sum(axis=0) for step in steps], axis=0)
    return np.asarray(stall / np.maximum(1, waits), np.float64)
