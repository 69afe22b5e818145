"""Record the rings of a folder as they are written: a watch whose ledger tells a recording everything first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from swtrace.ledger import Ledger
from swtrace.ledger.intake import Batch
from swtrace.recording.events import RankState, RecordSink
from swtrace.recording.writer import FrameWriter, RecordingWriter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.watch import Watch

STATUS_S = 1.0
"""How often the rings' state is recorded."""


class TellingLedger(Ledger):
    """A ledger that passes on what it is told, in that order, before it takes it in itself."""

    def __init__(self, sink: RecordSink, *, keep_untaken: int = 0) -> None:
        super().__init__(keep_untaken=keep_untaken)
        self._sink = sink
        self._forgetting = False

    def add_rank(self, identity: RankIdentity) -> None:
        """Pass on and take in."""
        self._sink.add_rank(identity)
        super().add_rank(identity)

    def set_series(self, rank: RankKey, series: tuple[SeriesInfo, ...]) -> None:
        """Pass on and take in."""
        self._sink.set_series(rank, series)
        super().set_series(rank, series)

    def add_batches(self, batches: Sequence[Batch]) -> None:
        """Pass on and take in. What comes by :meth:`add` comes by here, too."""
        for rank, records in batches:
            self._sink.add(rank, records)
        super().add_batches(batches)

    def rank_ended(self, rank: RankKey) -> None:
        """Pass on and take in."""
        if not self._forgetting:
            self._sink.rank_ended(rank)
        super().rank_ended(rank)

    def forget(self, rank: RankKey) -> None:
        """Pass on and take in; that the rank ended goes without saying."""
        self._sink.forget(rank)
        self._forgetting = True
        try:
            super().forget(rank)
        finally:
            self._forgetting = False


class Capture:
    """Watches a folder and records it. Belongs to one thread.

    Args:
        directory: The folder of rings; it may not exist yet.
        writer: Where to.
        run_id: Only this run; None for all.
    """

    def __init__(self, directory: Path, writer: FrameWriter, *, run_id: str | None = None) -> None:
        self.writer = writer
        self.watch = Watch(directory, run_id=run_id, ledger=TellingLedger(writer))
        self._status_at_s = 0.0

    @property
    def ledger(self) -> Ledger:
        """What the records amount to so far."""
        return self.watch.ledger

    def poll(self) -> bool:
        """Record what is new; True if there is more at once.

        Raises:
            RecordingError: it cannot be written.
        """
        more = self.watch.poll()
        self.writer.tick()
        now = time.monotonic()
        if now >= self._status_at_s:
            self._status_at_s = now + STATUS_S
            self.writer.status(self.states())
        return more

    def finish(self) -> None:
        """Record what is committed now and the rings' state, as far as there is room, and close the recording.

        Raises:
            RecordingError: it cannot be written.
        """
        try:
            if not self.writer.full:
                self.watch.drain()
            self.writer.status(self.states())
            if isinstance(self.writer, RecordingWriter):
                self.writer.close()
        finally:
            self.watch.close()

    def states(self) -> tuple[RankState, ...]:
        """Return the rings' state as of now."""
        return tuple(
            RankState(
                rank=status.identity.key,
                alive=status.alive,
                closed=status.closed,
                statistics=status.statistics,
                anchor=status.anchor,
                windows=status.windows,
            )
            for status in self.watch.ranks()
        )
