"""Rings of this host, read directly: no daemon needed."""

from __future__ import annotations

import time
from pathlib import Path

from swtrace.trace.clocks import now_ns
from swtrace.watch import RankStatus, Watch
from swtrace_tui.snapshot import EMPTY_FACTS, Link, RankView, Snapshot, SourceStatus

FACTS_EVERY_S = 0.25
"""Sums over the last steps change slower than the eye sees; windows and steps are taken anew each time."""


_READ_UP = 1024
"""With fewer records than that still to be read, a view is up to date."""


class RingsSource:
    """The rings of one folder.

    Args:
        directory: The folder; it may not exist yet.
        run_id: Only this run; None for all.
        facts_every_s: How often the ledger is asked for its sums; 0: for every snapshot.
    """

    def __init__(self, directory: Path, *, run_id: str | None = None, facts_every_s: float = FACTS_EVERY_S) -> None:
        self._directory = directory
        self._watch = Watch(directory, run_id=run_id)
        self._facts = EMPTY_FACTS
        self._facts_every_s = facts_every_s
        self._facts_due = 0.0
        self._lost_before: dict[Path, int] = {}
        self._read_up: set[Path] = set()

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._directory)

    def poll(self) -> bool:
        """Take in what the ranks have written."""
        return self._watch.poll()

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

    def _before(self, status: RankStatus) -> int:
        """Return what was lost before this view had read a ring up for the first time: its oldest end gives way."""
        if status.path not in self._read_up:
            self._lost_before[status.path] = status.statistics.lapped
            if status.statistics.pending < _READ_UP:
                self._read_up.add(status.path)
        return self._lost_before[status.path]

    def _rank(self, status: RankStatus) -> RankView:
        return RankView(
            identity=status.identity,
            alive=status.alive,
            closed=status.closed,
            statistics=status.statistics,
            series=status.series,
            windows=status.windows,
            lost_before=self._before(status),
            taken_ns=now_ns(),
        )
