"""Several sources as one: the ranks of a run that spans hosts, each host with its own daemon."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np

from swtrace.ledger.facts import LedgerFacts, SeriesFacts, SeriesKey, StepFacts
from swtrace.trace.identity import RankKey
from swtrace_tui.snapshot import RankView, Snapshot
from swtrace_tui.sources.protocol import Source

_PATIENCE_S = 0.1


class SeveralSources:
    """Polls each source in a thread of its own: one that does not answer holds up no other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._threads = ThreadPoolExecutor(len(self._sources), thread_name_prefix="swtrace-source")
        self._polls: list[Future[bool] | None] = [None] * len(self._sources)
        self._latest = [source.snapshot() for source in self._sources]

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(source.name for source in self._sources)

    def poll(self) -> bool:
        """Let each source take in what is new."""
        for i, source in enumerate(self._sources):
            if self._polls[i] is None:
                self._polls[i] = self._threads.submit(source.poll)
        wait([poll for poll in self._polls if poll is not None], timeout=_PATIENCE_S)
        more = False
        for i, poll in enumerate(self._polls):
            if poll is not None and poll.done():
                self._polls[i] = None
                more = poll.result() or more
                self._latest[i] = self._sources[i].snapshot()
        return more

    def snapshot(self) -> Snapshot:
        """Return what all of them know."""
        return merged(self._latest)

    def close(self) -> None:
        """Close each."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for source in self._sources:
            source.close()


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return one snapshot of all: a series whose ranks are on several hosts has them side by side again.

    Where hosts differ, instants are brought together by the hosts' wall clocks.
    """
    ranks = tuple({view.key: view for snapshot in snapshots for view in snapshot.ranks}.values())
    several_clocks = len({view.identity.clock for view in ranks}) > 1
    histories: dict[SeriesKey, list[tuple[StepFacts, ...]]] = {}
    for snapshot in snapshots:
        for key, steps in snapshot.history.items():
            histories.setdefault(key, []).append(steps)
    facts: dict[SeriesKey, SeriesFacts] = {}
    for snapshot in snapshots:
        for series in snapshot.facts.series:
            facts[series.key] = _joined(facts[series.key], series) if series.key in facts else series
    return Snapshot(
        sources=tuple(source for snapshot in snapshots for source in snapshot.sources),
        ranks=ranks,
        facts=LedgerFacts(
            ranks=tuple({each.identity.key: each for snapshot in snapshots for each in snapshot.facts.ranks}.values()),
            series=tuple(replace(each, clocks=_clocks(each, ranks)) for each in facts.values()),
            steps_untaken=0,
        ),
        history={key: _steps_joined(each) for key, each in histories.items()},
        steps_left_out=sum(snapshot.steps_left_out for snapshot in snapshots),
        clock_offsets={view.key: view.wall_offset_ns for view in ranks} if several_clocks else {},
    )


def _clocks(series: SeriesFacts, ranks: Sequence[RankView]) -> int:
    theirs = {rank.rank for rank in series.ranks}
    return len({view.identity.clock for view in ranks if view.key in theirs})


def _joined(one: SeriesFacts, other: SeriesFacts) -> SeriesFacts:
    ranks = {rank.rank: rank for rank in (*one.ranks, *other.ranks)}
    order = {RankKey(one.key.run_id, rank): i for i, rank in enumerate(one.key.group_ranks)}
    return replace(
        one,
        ranks=tuple(sorted(ranks.values(), key=lambda rank: order.get(rank.rank, 0))),
        steps=max(one.steps, other.steps),
        straggler=one.straggler or other.straggler,
        pending_steps=max(one.pending_steps, other.pending_steps),
        impossible_steps=max(one.impossible_steps, other.impossible_steps),
    )


def _steps_joined(histories: list[tuple[StepFacts, ...]]) -> tuple[StepFacts, ...]:
    if len(histories) == 1:
        return histories[0]
    by_number: dict[int, StepFacts] = {}
    for steps in histories:
        for step in steps:
            known = by_number.get(step.step)
            by_number[step.step] = step if known is None else _ranks_joined(known, step)
    return tuple(by_number[number] for number in sorted(by_number))


_BY_RANK = tuple(
    name
    for name in StepFacts.__dataclass_fields__
    if name not in {"series", "step", "ranks", "infos", "complete", "comparable", "source", "cause_ns", "path"}
)


def _ranks_joined(one: StepFacts, other: StepFacts) -> StepFacts:
    """Return a step with each rank's row from the side that has its records. What needs both sides stays unknown."""
    theirs = np.asarray(other.present.any(axis=1) & ~one.present.any(axis=1), np.bool_)
    if not theirs.any():
        return one
    columns = {}
    for name in _BY_RANK:
        mine, its = getattr(one, name), getattr(other, name)
        mask = theirs.reshape((-1,) + (1,) * (mine.ndim - 1))
        columns[name] = np.where(mask, its, mine).astype(mine.dtype)
    return replace(
        one,
        **columns,
        infos=tuple(a if a is not None else b for a, b in zip(one.infos, other.infos, strict=True)),
        cause_ns=np.where(theirs[np.newaxis, :, np.newaxis], other.cause_ns, one.cause_ns),
        complete=bool((one.present | other.present).all() and (one.ended | other.ended).all()),
        # Each side knows of its own ranks only: what compares them nobody has worked out.
        comparable=False,
        path=None,
    )
