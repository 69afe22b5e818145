"""Rings of this host, read directly: no daemon needed."""

from __future__ import annotations

import time
from pathlib import Path

from swtrace.ledger.ledger import DEFAULT_RECENT_STEPS
from swtrace.trace.clocks import now_ns
from swtrace.watch import RankStatus, Watch
from swtrace_tui.snapshot import EMPTY_FACTS, Link, RankView, Snapshot, SourceStatus

FACTS_EVERY_S = 0.25
"""Sums over the last steps change slower than the eye sees; windows and steps are taken anew each time."""

NEWEST_STEPS = DEFAULT_RECENT_STEPS + 8
"""What is shown is of the last steps: a view begins so many before the end of a ring, whatever its past."""
POLL_S = 0.05
"""A poll takes in as many records as it can in about this time: between two of them a frame can be drawn."""
_FEWEST, _MOST = 1 << 13, 1 << 17
"""Records per poll."""


class RingsSource:
    """The rings of one folder.

    Args:
        directory: The folder; it may not exist yet.
        run_id: Only this run; None for all.
        facts_every_s: How often the ledger is asked for its sums; 0: for every snapshot.
        newest_steps: About how many steps before its end the reading of a ring begins, and where it returns to when
            ranks write faster than this reads; None: everything that the rings hold is read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str | None = None,
        facts_every_s: float = FACTS_EVERY_S,
        newest_steps: int | None = NEWEST_STEPS,
    ) -> None:
        self._directory = directory
        self._watch = Watch(directory, run_id=run_id, newest_steps=newest_steps)
        self._facts = EMPTY_FACTS
        self._facts_every_s = facts_every_s
        self._facts_due = 0.0
        self._before: dict[Path, int] = {}
        self._limit = _MOST // 4

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._directory)

    def poll(self) -> bool:
        """Take in what the ranks have written."""
        before = time.monotonic()
        more = self._watch.poll(self._limit)
        took = time.monotonic() - before
        if took > POLL_S:
            self._limit = max(_FEWEST, self._limit // 2)
        elif more and took < POLL_S / 2:
            self._limit = min(_MOST, self._limit * 2)
        return more

    def snapshot(self) -> Snapshot:
        """Return the ledger's facts and the rings' state."""
        watch, now = self._watch, time.monotonic()
        statuses = watch.ranks()
        if now >= self._facts_due or len(self._facts.ranks) != len(statuses):
            self._facts, self._facts_due = watch.ledger.facts(), now + self._facts_every_s
        return Snapshot(
            sources=(self._status(bool(statuses)),),
            ranks=tuple(self._rank(status) for status in statuses),
            facts=self._facts,
            history={series.key: watch.ledger.history(series.key) for series in self._facts.series},
        )

    def close(self) -> None:
        """Close all files."""
        self._watch.close()

    def _status(self, found: bool) -> SourceStatus:  # noqa: FBT001 - one caller
        problems = self._watch.tail.problems
        detail = "; ".join(f"{path.name}: {text}" for path, text in sorted(problems.items())[:3])
        return SourceStatus(self.name, Link.LIVE if found else Link.WAITING, detail)

    def _rank(self, status: RankStatus) -> RankView:
        statistics = status.statistics
        return RankView(
            identity=status.identity,
            alive=status.alive,
            closed=status.closed,
            died=status.died,
            statistics=statistics,
            series=status.series,
            windows=status.windows,
            before=self._before.setdefault(status.path, statistics.lost + statistics.skipped),
            taken_ns=now_ns(),
        )
