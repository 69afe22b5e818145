"""The same facts for scripts, notebooks and tests: live from a folder of rings, or from a recording.

:func:`swtrace.open` makes one. Everything is asked by selection: series, rank, layer, phase, step range, with
warm-up steps left out. A live session takes in what is new whenever it is asked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtrace.closing import Closing
from swtrace.errors import EmptySelectionError, SettingsError
from swtrace.ledger.facts import LedgerFacts, Recent, SeriesKey, StepFacts
from swtrace.ledger.verdict import Verdict, verdict
from swtrace.observing import Observation, Roster, watch_rings
from swtrace.recording.reader import Recording
from swtrace.recording.replay import Replay
from swtrace.selection import Selection, occupancy, sum_up, sum_up_by_rank
from swtrace.tables import Table, joined, step_columns, wait_columns
from swtrace.trace.identity import RankIdentity, RankKey
from swtrace.units import counted, listed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

KEPT_STEPS = 100_000


class Session(Closing):
    """Facts of any number of ranks, and questions about them.

    Every question takes the fields of :class:`~swtrace.selection.Selection` by name: ``series``, ``rank``,
    ``layer``, ``phase``, ``steps``, ``warmup``.
    """

    @abstractmethod
    def steps(self) -> Iterable[StepFacts]:
        """Return every finished step, in the order in which they finished."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return everything that is known now."""

    def facts(self) -> LedgerFacts:
        """Return everything that the ledger states, as it stands."""
        return self.observe().facts

    @property
    def lost(self) -> int:
        """Records that were overwritten or damaged before they could be read."""
        return self.observe().lost

    # Numbers

    def sums(self, **selection: Any) -> Recent:
        """Return everything summed up over what is meant, all ranks together: the ratios below are its own.

        Raises:
            EmptySelectionError: nothing that was recorded is meant. A sum of nothing would pass for 0.
        """
        wanted = Selection(**selection)
        recent = sum_up(self.steps(), wanted)
        if not recent.steps:
            raise self._empty_selection(wanted)
        return recent

    def sums_by_rank(self, **selection: Any) -> dict[tuple[SeriesKey, RankKey], Recent]:
        """Return the same by series and rank."""
        return sum_up_by_rank(self.steps(), Selection(**selection))

    def stall_seconds(self, **selection: Any) -> float:
        """Return the stall of all waits meant, in seconds."""
        return self.sums(**selection).stall_ns * 1e-9

    def stall_ratio(self, **selection: Any) -> float | None:
        """Return stall per step time; None where that is not known."""
        return self.sums(**selection).stall_ratio

    def efficiency(self, **selection: Any) -> float | None:
        """Return the prefetch efficiency; None where nothing was transferred."""
        return self.sums(**selection).efficiency

    def on_time_rate(self, **selection: Any) -> float | None:
        """Return on-time waits per wait; None without a wait."""
        return self.sums(**selection).on_time_rate

    def occupancy(self, **selection: Any) -> dict[str, float]:
        """Return how many of a rank's windows are free, inflight, ready and in use, on average over time."""
        self.sums(**selection)  # an error where there is nothing
        return occupancy(self.steps(), Selection(**selection))

    def _empty_selection(self, wanted: Selection) -> EmptySelectionError:
        """Return the error that says what there is instead."""
        there = []
        for series in self.facts().series:
            if series.ranks and any(rank.totals.steps for rank in series.ranks):
                info = series.ranks[0].info
                ranks = listed("rank", [rank.rank.rank for rank in series.ranks])
                last = info.start_layer + info.num_layers - 1
                steps = max(rank.totals.steps for rank in series.ranks)
                there.append(f"{info.name} (layers {info.start_layer} to {last}, {ranks}, {counted(steps, 'step')})")
        asked = f" matches {wanted}" if str(wanted) else ""
        return EmptySelectionError(f"no finished step{asked}; recorded: {', '.join(there) or 'nothing'}")

    # Tables

    def waits(self, **selection: Any) -> Table:
        """Return one row per step, rank and layer, with all instants and causes (:mod:`swtrace.tables`)."""
        rows = (wait_columns(picked) for picked in Selection(**selection).pick(self.steps()))
        return joined(rows, wait_columns)

    def step_table(self, **selection: Any) -> Table:
        """Return one row per step and rank."""
        rows = (step_columns(picked) for picked in Selection(**selection).pick(self.steps()))
        return joined(rows, step_columns)

    def spans(self, **selection: Any) -> list[ReadableSpan]:
        """Return the steps meant as OpenTelemetry spans, with the ids that a daemon would give them.

        A selection by rank, layer or phase selects whole steps here: a trace is whole or absent.
        """
        from swtrace.spans.step_spans import StepSpans

        origins = self.origins()
        picked = Selection(**selection).pick(self.steps())
        return [span for each in picked for span in StepSpans(each.step, origins)]

    def origins(self) -> dict[RankKey, Any]:
        """Return what spans need to know of each rank (:class:`~swtrace.spans.origins.SpanOrigin`)."""
        from swtrace.spans.origins import RankOrigins

        ranks = self.observe().ranks
        return RankOrigins().of((rank.identity for rank in ranks), {rank.key: rank.ring.anchor for rank in ranks})

    def verdicts(self) -> dict[SeriesKey, Verdict]:
        """Return plain words about every series."""
        seen = self.observe()
        return {series.key: verdict(series, seen.history[series.key], seen.died) for series in seen.facts.series}


class RingsSession(Session):
    """The rings of a folder, live.

    Args:
        directory: The folder; it may not exist yet.
        run_id: Only this run; None for all.
        keep_steps: Older steps are let go.
    """

    def __init__(self, directory: Path, *, run_id: str | None = None, keep_steps: int = KEPT_STEPS) -> None:
        self.roster = watch_rings(directory, run_id=run_id, rescan_s=0.0, keep_steps=True)
        self._steps: deque[StepFacts] = deque(maxlen=keep_steps)

    def refresh(self) -> None:
        """Take in everything that is committed now."""
        self._steps.extend(self.roster.steps())

    def steps(self) -> Sequence[StepFacts]:
        """Return every finished step that is kept, up to now."""
        self.refresh()
        return tuple(self._steps)

    def observe(self) -> Observation:
        """Return everything that is known, up to now."""
        self.refresh()
        return self.roster.observe()

    def close(self) -> None:
        """Let go of all files."""
        self.roster.close()


class RecordingSession(Session):
    """A recording. It is read anew for every question, so that an hour of it fits into memory as well as a second.

    Args:
        path: The file, or all parts of one recording.
        salvage: Read around damage.
    """

    def __init__(self, path: Path | Sequence[Path], *, salvage: bool = False) -> None:
        self.recording = Recording.open(path, salvage=salvage)
        self._identities: tuple[RankIdentity, ...] = ()
        self._end: Observation | None = None

    def steps(self) -> Iterable[StepFacts]:
        """Replay the recording, and yield every step."""
        replay = Replay(self.recording)
        roster = Roster(replay, keep_steps=True)
        yield from roster.steps()
        self._identities, self._end = tuple(replay.identities), roster.observe()

    def observe(self) -> Observation:
        """Return everything that is known at the end of the recording."""
        if self._end is None:
            for _ in self.steps():
                pass
        if self._end is None:
            raise SettingsError("the recording cannot be replayed")
        return self._end

    def identities(self) -> tuple[RankIdentity, ...]:
        """Return who the recorded ranks are, those included that others took the place of."""
        self.observe()
        return self._identities

    def close(self) -> None:
        """Let go of the file."""
        self.recording.close()
