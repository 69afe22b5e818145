"""A recording that is played: the same views as live, at the playhead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from swtrace.errors import SwtraceError
from swtrace.recording import Recording
from swtrace.recording.events import RankState
from swtrace.recording.playback import Controls, Playback, Playhead
from swtrace.trace.reader import RingStatistics
from swtrace_tui.snapshot import Link, RankView, Snapshot, SourceStatus, empty


class PlayingSource:
    """One recording, played.

    Args:
        path: The file, or the parts of one.
        controls: What the person wants.
        moved: Told where the playhead stands, in the thread that polls.
        salvage: Read around damage, and say how much is missing.
    """

    def __init__(
        self, path: list[Path], controls: Controls, moved: Callable[[Playhead], object], *, salvage: bool = False
    ) -> None:
        self._name = str(path[0])
        self._recording = Recording.open(path, salvage=salvage)
        self._playback = Playback(self._recording, controls)
        self._moved = moved
        self._problem = ""

    @property
    def name(self) -> str:
        """The file."""
        return self._name

    def poll(self) -> bool:
        """Play on."""
        try:
            more = self._playback.advance()
        except SwtraceError as error:
            self._problem = str(error)
            return False
        self._moved(self._playback.head)
        return more

    def snapshot(self) -> Snapshot:
        """Return what the ledger states at the playhead."""
        if self._problem:
            return empty(SourceStatus(self._name, Link.LOST, self._problem))
        playback = self._playback
        facts = playback.ledger.facts()
        told = {each.identity.key: each for each in facts.ranks}
        ended = playback.head.ended
        views = []
        for key, identity in playback.identities.items():
            state = playback.status.get(key)
            views.append(
                RankView(
                    identity=identity,
                    alive=not ended or (state is not None and state.alive),
                    closed=ended and state is not None and state.closed,
                    statistics=_played(told[key].records if key in told else 0, state),
                    series=playback.tables.get(key, ()),
                    windows=state.windows if state is not None else {},
                    died=ended and state is not None and not state.alive and not state.closed,
                    before=0,
                    taken_ns=told[key].last_record_ns if key in told else 0,
                )
            )
        return Snapshot(
            sources=(SourceStatus(self._name, Link.RECORDED, self._damage()),),
            ranks=tuple(views),
            facts=facts,
            history={series.key: playback.ledger.history(series.key) for series in facts.series},
        )

    def close(self) -> None:
        """Let go of the file."""
        self._recording.close()

    def _damage(self) -> str:
        missing = self._recording.missing()
        return f"{missing.damaged_records} records damaged" if missing.damaged_frames else ""


def _played(records: int, state: RankState | None) -> RingStatistics:
    """Return a rank's account at the playhead: the records played so far, and what the recorder had missed by then."""
    lost = state.statistics if state is not None else RingStatistics(0, 0, 0, 0, 0)
    return RingStatistics(
        written=records + lost.lost + lost.skipped,
        delivered=records,
        lapped=lost.lapped,
        damaged=lost.damaged,
        pending=0,
        skipped=lost.skipped,
    )
