"""Feed a ledger from a recording: the facts are those that the ledger beside the recorder stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.recording.events import RankJoined, RankState, RecordsRead, SeriesTold, StatusTaken
from swtrace.recording.reader import Recording
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo

_UNTAKEN = 1 << 16
_TOGETHER = 1 << 15
"""Steps are handed out after so many records."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A whole recording, replayed."""

    ledger: Ledger
    identities: tuple[RankIdentity, ...]
    """Of every ring, also of those that others took the place of, in the order in which they were found."""
    tables: dict[RankKey, tuple[SeriesInfo, ...]]
    status: tuple[RankState, ...]
    """The rings' state when it was last taken."""


def replay(recording: Recording) -> Replayed:
    """Replay a recording to its end and finish every step.

    Raises:
        RecordingFormatError: the recording is damaged.
    """
    replayer = Replayer(recording, keep_steps=False)
    for _ in replayer.steps():
        pass
    return replayer.replayed()


class Replayer:
    """Replays a recording once, handing out its finished steps as they come: in bounded memory.

    Args:
        recording: What to replay.
        keep_steps: Whether anyone will look at the steps.
    """

    def __init__(self, recording: Recording, *, keep_steps: bool = True) -> None:
        self.ledger = Ledger(keep_untaken=_UNTAKEN if keep_steps else 0)
        self.identities: dict[RankKey, RankIdentity] = {}
        self.tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self.status: dict[RankKey, RankState] = {}
        self._all: list[RankIdentity] = []
        self._recording = recording

    def steps(self) -> Iterator[StepFacts]:
        """Yield every finished step, in the order in which steps finish.

        Raises:
            RecordingFormatError: the recording is damaged.
        """
        fed = 0
        for event in self._recording.events():
            event.feed(self.ledger)
            # Frames are small: the ledger collects what they hold, as long as it is not asked.
            if isinstance(event, RecordsRead):
                fed += sum(len(records) for _, records in event.batches)
                if fed < _TOGETHER:
                    continue
                fed = 0
            if isinstance(event, RankJoined):
                self.identities[event.identity.key] = event.identity
                self._all.append(event.identity)
            elif isinstance(event, SeriesTold):
                self.tables[event.rank] = event.series
            elif isinstance(event, StatusTaken):
                self.status.update((state.rank, state) for state in event.ranks)
            yield from self.ledger.take_steps()
        self.ledger.flush()
        yield from self.ledger.take_steps()

    def replayed(self) -> Replayed:
        """Return what is known at the end."""
        return Replayed(
            ledger=self.ledger,
            identities=tuple(self._all),
            tables=dict(self.tables),
            status=tuple(self.status[rank] for rank in sorted(self.status)),
        )
