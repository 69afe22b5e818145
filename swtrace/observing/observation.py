"""The observed state at one moment, as frozen data, from which metrics, API, screens, reports and tests are made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from swtrace.ledger.facts import LedgerFacts, RankFacts, SeriesKey, SeriesRankFacts, StepFacts
from swtrace.observing.events import RingState
from swtrace.observing.origin import Link, OriginStatus
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.marks import WindowState

NO_FACTS = LedgerFacts(ranks=(), series=(), steps_untaken=0)


@dataclass(frozen=True, slots=True)
class SeriesEntry:
    """One entry of a rank's series table, with the states of its windows."""

    index: int
    info: SeriesInfo
    windows: tuple[WindowState, ...]
    closed: bool
    """The series was closed, and its rank lives on."""


@dataclass(frozen=True, slots=True)
class ObservedRank:
    """One rank at one moment."""

    identity: RankIdentity
    series: tuple[SeriesInfo, ...]
    """In the order of the ring's table, including refused series."""
    ring: RingState
    died: bool
    """The writer is gone, did not close its ring and was not stopped together with all other ranks of its run."""
    before: int
    """Records overwritten or skipped before the observer began to read. They do not count as lost."""
    run_began_ns: int
    """UNIX time at which the first ring of the run was created. Simulated time is shown as starting then, because back
    ends refuse or hide data that seem to be from the time of boot."""

    @property
    def key(self) -> RankKey:
        """The name of the rank."""
        return self.identity.key

    @property
    def unix_offset_ns(self) -> int:
        """UNIX time minus CLOCK_MONOTONIC of the rank's host; 0 if unknown."""
        return self.ring.anchor.realtime_ns - self.ring.anchor.monotonic_ns

    @property
    def simulated(self) -> bool:
        """Whether every series of the rank runs on simulated time."""
        return bool(self.series) and all(info.clock == "virtual" for info in self.series)

    @property
    def lost(self) -> int:
        """Records overwritten, damaged, or skipped to keep up, since the observer began to read."""
        return max(0, self.ring.statistics.lost + self.ring.statistics.skipped - self.before)

    def entries(self) -> Iterator[SeriesEntry]:
        """Yield every entry of the series table, including refused series."""
        windows = self.ring.windows
        for index, info in enumerate(self.series):
            held = windows[index] if index < len(windows) else ()
            known = tuple(window for window in held if window.position < info.num_layers)  # all, unless damaged
            yield SeriesEntry(index, info, known, index in self.ring.closed_series)

    def entry(self, info: SeriesInfo) -> SeriesEntry | None:
        """Return the entry of a series; None if the table does not have it."""
        return next((entry for entry in self.entries() if entry.info == info), None)


@dataclass(frozen=True, slots=True, repr=False)
class Observation:
    """Everything at one moment. Rings, windows and facts are taken together, so that sums across them match exactly."""

    taken_ns: int
    """CLOCK_MONOTONIC of the observer's host."""
    origins: tuple[OriginStatus, ...]
    ranks: tuple[ObservedRank, ...]
    """By run and rank."""
    facts: LedgerFacts
    history: Mapping[SeriesKey, tuple[StepFacts, ...]]
    """The last finished steps of each series, oldest first."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Reasons why files cannot be read or are not shown, by path."""
    caught_up: bool = True
    """Whether all committed records are included; if not, each rank's ring says how far it is behind."""
    clock_offsets: Mapping[RankKey, int] = field(default_factory=dict)
    """Offset to add to a rank's instants to compare them with other ranks'; empty if all share one clock."""

    def __repr__(self) -> str:
        """Return a short text, because frameworks print their arguments and an observation has thousands of numbers."""
        return f"Observation({len(self.ranks)} ranks, {len(self.facts.series)} series)"

    @property
    def died(self) -> frozenset[RankKey]:
        """The ranks that died."""
        return frozenset(rank.key for rank in self.ranks if rank.died)

    @property
    def lost(self) -> int:
        """Records that were overwritten or damaged before they could be read."""
        return sum(rank.ring.statistics.lost for rank in self.ranks)

    @property
    def silent(self) -> list[str]:
        """The origins that do not answer, each with the reason if it is known."""
        return [
            f"{origin.name} ({origin.detail or 'no answer yet'})"
            for origin in self.origins
            if origin.link in {Link.CONNECTING, Link.LOST}
        ]

    def of_runs(self, wanted: Collection[str]) -> Observation:
        """Return the observation of some runs only."""
        ranks = tuple(rank for rank in self.ranks if rank.identity.run_id in wanted)
        facts = replace(
            self.facts,
            ranks=tuple(rank for rank in self.facts.ranks if rank.identity.run_id in wanted),
            series=tuple(series for series in self.facts.series if series.key.run_id in wanted),
        )
        return replace(self, ranks=ranks, facts=facts)

    def stragglers(self) -> dict[tuple[RankKey, SeriesKey], float]:
        """Return the stragglers named by the ledger, with their excess as a share of step time."""
        return {
            (rank, series.key): straggler.share
            for series in self.facts.series
            for straggler in reversed(series.stragglers)
            for rank in straggler.ranks
        }

    def rank_facts(self) -> dict[RankKey, RankFacts]:
        """Return the ledger's facts by rank."""
        return {facts.identity.key: facts for facts in self.facts.ranks}

    def series_rank_facts(self) -> dict[tuple[RankKey, SeriesKey], SeriesRankFacts]:
        """Return the ledger's facts by rank and series."""
        return {(rank.rank, series.key): rank for series in self.facts.series for rank in series.ranks}


def series_key(rank: RankKey, info: SeriesInfo) -> SeriesKey:
    """Return the ledger's key for a series of a rank."""
    return SeriesKey(rank.run_id, info.name, info.start_layer, info.group_ranks)


def run_begins(identities: Iterable[RankIdentity]) -> dict[str, int]:
    """Return when the first ring of each run was created, as UNIX time."""
    begins: dict[str, int] = {}
    for identity in identities:
        begins[identity.run_id] = min(begins.get(identity.run_id, identity.start_time_ns), identity.start_time_ns)
    return begins
