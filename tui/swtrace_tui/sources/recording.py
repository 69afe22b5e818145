"""A recording: what its ranks had written when it ended, replayed into a ledger like any other records."""

from __future__ import annotations

from pathlib import Path

from swtrace.recording import Recording
from swtrace.recording.events import RankState
from swtrace.recording.replay import Replayed, replay
from swtrace.trace.identity import RankIdentity
from swtrace.trace.reader import RingStatistics
from swtrace_tui.snapshot import Link, RankView, Snapshot, SourceStatus, empty


class RecordingSource:
    """One recording, shown as it stood at its end.

    Args:
        path: The file.
        salvage: Read around damage, and say how much is missing.
    """

    def __init__(self, path: Path, *, salvage: bool = False) -> None:
        self._path, self._salvage = path, salvage
        self._snapshot: Snapshot | None = None

    @property
    def name(self) -> str:
        """The file."""
        return str(self._path)

    def poll(self) -> bool:
        """Replay it, the first time."""
        if self._snapshot is None:
            with Recording.open(self._path, salvage=self._salvage) as recording:
                replayed = replay(recording)
                self._snapshot = self._seen(replayed, " ".join(recording.missing().sentences))
        return False

    def snapshot(self) -> Snapshot:
        """Return what the ledger stated at the end."""
        return self._snapshot or empty(SourceStatus(self.name, Link.WAITING))

    def close(self) -> None:
        """Do nothing: the file is closed once it is read."""

    def _seen(self, replayed: Replayed, missing: str) -> Snapshot:
        facts = replayed.ledger.facts()
        last = {each.identity.key: each.last_record_ns for each in facts.ranks}
        states = {state.rank: state for state in replayed.status}
        newest = {identity.key: identity for identity in replayed.identities}
        return Snapshot(
            sources=(SourceStatus(self.name, Link.RECORDED, missing),),
            ranks=tuple(
                _rank(replayed, states.get(key), identity=identity, taken_ns=last.get(key, 0))
                for key, identity in newest.items()
            ),
            facts=facts,
            history={series.key: replayed.ledger.history(series.key) for series in facts.series},
        )


def _rank(replayed: Replayed, state: RankState | None, *, identity: RankIdentity, taken_ns: int) -> RankView:
    return RankView(
        identity=identity,
        alive=state is not None and state.alive,
        closed=state is None or state.closed,
        statistics=state.statistics if state is not None else RingStatistics(0, 0, 0, 0, 0),
        series=replayed.tables.get(identity.key, ()),
        windows=state.windows if state is not None else {},
        died=state is not None and not state.alive and not state.closed,
        before=0,
        taken_ns=taken_ns,
    )
