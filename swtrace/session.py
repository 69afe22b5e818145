"""Sessions: the ledger's facts for scripts, notebooks and tests, live from a folder of rings or from a recording.

:func:`swtrace.open` returns one. Queries take a selection: series, rank, layer, phase, steps, warm-up. Each query of a
live session first reads new records.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtrace.closing import Closing
from swtrace.diagnosis.diagnosis import Diagnosis, Verdict, diagnose, verdict
from swtrace.errors import EmptySelectionError, SettingsError, SwtraceError
from swtrace.ledger.facts import LedgerFacts, Recent, SeriesKey, StepFacts
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
__tracebackhide__ = methodcaller("errisinstance", SwtraceError)
"""For pytest: the traceback of such an error ends at the line of the test, not here."""


class Session(Closing):
    """Facts about any number of ranks.

    Every query takes the fields of :class:`~swtrace.selection.Selection` by name: ``series``, ``rank``,
    ``layer``, ``phase``, ``steps``, ``warmup``.
    """

    @abstractmethod
    def steps(self) -> Iterable[StepFacts]:
        """Return every finished step, in the order in which they finished."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return everything known so far."""

    def facts(self) -> LedgerFacts:
        """Return the ledger's facts so far."""
        return self.observe().facts

    @property
    def lost(self) -> int:
        """Number of records that were overwritten or damaged before they were read."""
        return self.observe().lost

    # Numbers

    def sums(self, **selection: Any) -> Recent:
        """Return the sums over the selected waits of all ranks. The ratios below are computed from them.

        Raises:
            EmptySelectionError: no recorded step is selected. A sum over nothing would look like 0.
            SettingsError: a field of the selection does not exist, or its value is not allowed.
        """
        wanted = Selection.of(selection)
        recent = sum_up(self.steps(), wanted)
        if not recent.steps:
            raise self._empty_selection(wanted)
        return recent

    def sums_by_rank(self, **selection: Any) -> dict[tuple[SeriesKey, RankKey], Recent]:
        """Return the sums by series and rank; an empty dict if no recorded step is selected."""
        return sum_up_by_rank(self.steps(), Selection.of(selection))

    def stall_seconds(self, **selection: Any) -> float:
        """Return the stall of all selected waits in seconds."""
        return self._sums_of_shared(**selection).stall_ns * 1e-9

    def stall_ratio(self, **selection: Any) -> float | None:
        """Return stall divided by step time; None if the step time is unknown."""
        return self._sums_of_shared(**selection).stall_ratio

    def efficiency(self, **selection: Any) -> float | None:
        """Return the prefetch efficiency; None if nothing was transferred."""
        return self._sums_of_shared(**selection).efficiency

    def on_time_rate(self, **selection: Any) -> float | None:
        """Return the share of waits that were on time; None if there was no wait."""
        return self._sums_of_shared(**selection).on_time_rate

    def occupancy(self, **selection: Any) -> dict[str, float]:
        """Return how many of a rank's windows are free, inflight, ready and in use, averaged over time and ranks."""
        self._sums_of_shared(**selection)  # raises an error if nothing is selected
        return occupancy(self.steps(), Selection.of(selection))

    def _sums_of_shared(self, **selection: Any) -> Recent:
        """Return the sums over the selected waits.

        Raises:
            EmptySelectionError: no recorded step is selected, or no recorded series is shared. Without a wait that
                could stall, any figure would look as if all was hidden.
        """
        recent = self.sums(**selection)
        series = self.facts().series
        if not recent.waits and not any(each.shared for each in series if each.ranks):
            names = ", ".join(dict.fromkeys(each.key.name for each in series))
            raise EmptySelectionError(f"nothing is shared: {names} is only observed (SWTRACE_SHARE=none)")
        return recent

    def _empty_selection(self, wanted: Selection) -> EmptySelectionError:
        """Return the error for an empty selection, which lists what was recorded."""
        recorded = []
        for series in self.facts().series:
            if series.ranks and any(rank.totals.steps for rank in series.ranks):
                info = series.ranks[0].info
                ranks = listed("rank", [rank.rank.rank for rank in series.ranks])
                steps = max(rank.totals.steps for rank in series.ranks)
                recorded.append(f"{info.name} ({info.extent}, {ranks}, {counted(steps, 'step')})")
        asked = f" matches {wanted}" if str(wanted) else ""
        return EmptySelectionError(f"no finished step{asked}; recorded: {', '.join(recorded) or 'nothing'}")

    # Tables

    def waits(self, **selection: Any) -> Table:
        """Return one row per step, rank and layer, with all instants and causes (:mod:`swtrace.tables`)."""
        rows = (wait_columns(picked) for picked in Selection.of(selection).pick(self.steps()))
        return joined(rows, wait_columns)

    def step_table(self, **selection: Any) -> Table:
        """Return one row per step and rank."""
        rows = (step_columns(picked) for picked in Selection.of(selection).pick(self.steps()))
        return joined(rows, step_columns)

    def spans(self, **selection: Any) -> list[ReadableSpan]:
        """Return the selected steps as OpenTelemetry spans, with the ids that a daemon would assign.

        A selection by rank, layer or phase selects whole steps here, because a trace is complete or absent.
        """
        from swtrace.spans.step_spans import StepSpans

        origins = self.origins()
        picked = Selection.of(selection).pick(self.steps())
        return [span for each in picked for span in StepSpans(each.step, origins)]

    def origins(self) -> dict[RankKey, Any]:
        """Return the resource and clock of each rank's spans (:class:`~swtrace.spans.origins.SpanOrigin`)."""
        from swtrace.spans.origins import RankOrigins

        ranks = self.observe().ranks
        return RankOrigins().of((rank.identity for rank in ranks), {rank.key: rank.ring.anchor for rank in ranks})

    def verdicts(self) -> dict[SeriesKey, Verdict]:
        """Return the verdict on every series."""
        seen = self.observe()
        return {series.key: verdict(series, seen.history[series.key], seen.ranks) for series in seen.facts.series}

    def diagnose(self) -> Diagnosis:
        """Return what is wrong with everything known so far, and what repairs would save."""
        return diagnose(self.observe())


class RingsSession(Session):
    """A live session over the rings of a folder.

    Args:
        directory: The folder; it may not exist yet.
        run_id: Read only this run; None reads all.
        keep_steps: How many of the last steps to keep.
    """

    def __init__(self, directory: Path, *, run_id: str | None = None, keep_steps: int = KEPT_STEPS) -> None:
        self.roster = watch_rings(directory, run_id=run_id, rescan_s=0.0, keep_steps=True)
        self._steps: deque[StepFacts] = deque(maxlen=keep_steps)

    def refresh(self) -> None:
        """Read all records committed so far."""
        self._steps.extend(self.roster.steps())

    def steps(self) -> Sequence[StepFacts]:
        """Return every finished step that is kept."""
        self.refresh()
        return tuple(self._steps)

    def observe(self) -> Observation:
        """Return everything known so far."""
        self.refresh()
        return self.roster.observe()

    def close(self) -> None:
        """Close all files."""
        self.roster.close()


class RecordingSession(Session):
    """A session over a recording. Each query reads the file again, so memory does not grow with its length.

    Args:
        path: The file, or all parts of one recording.
        salvage: Skip damaged parts.
    """

    def __init__(self, path: Path | Sequence[Path], *, salvage: bool = False) -> None:
        self.recording = Recording.open(path, salvage=salvage)
        self._identities: tuple[RankIdentity, ...] = ()
        self._end: Observation | None = None

    def steps(self) -> Iterable[StepFacts]:
        """Replay the recording and yield every finished step."""
        replay = Replay(self.recording)
        roster = Roster(replay, keep_steps=True)
        yield from roster.steps()
        self._identities, self._end = tuple(replay.identities), roster.observe()

    def observe(self) -> Observation:
        """Return everything known at the end of the recording."""
        if self._end is None:
            for _ in self.steps():
                pass
        if self._end is None:
            raise SettingsError("the recording cannot be replayed")
        return self._end

    def identities(self) -> tuple[RankIdentity, ...]:
        """Return the identities of all recorded ranks, including those that were replaced by others."""
        self.observe()
        return self._identities

    def close(self) -> None:
        """Close the file."""
        self.recording.close()
