"""The summary of a run: a :class:`Summary` of the ledger's facts.

It selects facts, converts ns to seconds and adds the verdict. It computes nothing else, so the same
facts give the same summary in ``demo``, ``run`` and scripts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from swtrace.diagnosis.finding import Finding
    from swtrace.ledger.facts import SeriesFacts, SeriesRankFacts, StepFacts, Straggler
    from swtrace.observing import Observation, ObservedRank

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class SeriesRankSummary:
    """One rank of one series. Ratios and means are over the last ``recent_steps`` steps."""

    rank: int
    host: str
    steps: int
    untimed_steps: dict[str, int]
    """Steps without instants, by reason; not counted in the recent steps."""
    aborted_steps: int
    unwaited_steps: int
    recent_steps: int
    step_seconds: float | None
    """Mean of the recent steps."""
    stall_seconds: float | None
    """Mean stall per recent step; None if the series is only observed."""
    stall_ratio: float | None
    on_time_rate: float | None
    efficiency: float | None
    bandwidth_bytes_per_second: float | None
    cause_seconds: dict[str, float]
    """Total stall of the recent steps, by proximate cause."""
    excess_seconds: float | None
    """Mean per step: this rank's compute on the critical path beyond the ranks' median; None in a pull series, or of a
    rank alone."""
    broadcast_bytes: int
    """Bytes of all broadcasts since the start in which this rank took part."""
    owned_bytes: int
    window_bytes: int
    held_bytes: int
    """Sum of owned layers, windows and layers that the program keeps."""
    replicated_bytes: int
    saved_ratio: float | None
    """Fraction of the replicated bytes that sharing saves on this rank."""


@dataclass(frozen=True, slots=True)
class StragglerSummary:
    """Ranks that compute longer than the others (:class:`~swtrace.ledger.facts.Straggler`)."""

    ranks: tuple[int, ...]
    excess_seconds: float
    """In the median affected step."""
    share: float
    """Mean excess per step, as a share of the median step time."""
    pattern: str
    often: float
    """Share of steps that are affected."""
    period: int | None
    phase: str | None
    since_step: int | None


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """One series, over all ranks whose records were read."""

    run_id: str
    name: str
    start_layer: int
    stack_layers: int
    layers: tuple[int, ...]
    """The shared ones."""
    prefetch_step: int
    windows: str
    transport: str
    kind: str
    """What brings its layers: one of :data:`~swtrace.trace.identity.KINDS`, or ``none`` if it is only observed."""
    sharing: str
    """How its layers are shared, in words."""
    group_ranks: tuple[int, ...]
    ranks: tuple[SeriesRankSummary, ...]
    stragglers: tuple[StragglerSummary, ...]
    findings: tuple[Finding, ...]
    """The verdict, headline first."""


@dataclass(frozen=True, slots=True)
class RefusedSummary:
    """A series that was requested but is not shared."""

    run_id: str
    rank: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class RingSummary:
    """Counts of one rank's records: ``written == delivered + lost + pending``."""

    run_id: str
    rank: int
    alive: bool
    written: int
    delivered: int
    lost: int
    pending: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that ``swtrace`` reports at the end of a run."""

    series: tuple[SeriesSummary, ...]
    refused: tuple[RefusedSummary, ...]
    rings: tuple[RingSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain dicts, lists and numbers; durations in seconds, sizes in bytes."""
        document = asdict(self)
        for series, plain in zip(self.series, document["series"], strict=True):
            plain["findings"] = [finding.to_json() for finding in series.findings]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Summary:
        """Return what :meth:`to_json` was called on."""
        return cls(
            series=tuple(_series_from_json(series) for series in document["series"]),
            refused=tuple(RefusedSummary(**refused) for refused in document["refused"]),
            rings=tuple(RingSummary(**ring) for ring in document["rings"]),
        )


def summarise(observation: Observation, *, in_depth: bool = True) -> Summary:
    """Return the summary of an observation.

    Args:
        observation: The observation.
        in_depth: Whether the verdict covers layers, causes and other prefetch steps, which is slow; otherwise it
            covers sums only.
    """
    return Summary(
        series=tuple(
            _series(series, observation.history.get(series.key, ()) if in_depth else (), observation.ranks)
            for series in observation.facts.series
            if series.ranks
        ),
        refused=tuple(refused for rank in observation.ranks for refused in _refused(rank)),
        rings=tuple(_ring(rank) for rank in observation.ranks),
    )


def _series(facts: SeriesFacts, steps: Sequence[StepFacts], ranks: Collection[ObservedRank]) -> SeriesSummary:
    from swtrace.diagnosis.diagnosis import verdict

    info = facts.ranks[0].info
    return SeriesSummary(
        run_id=facts.key.run_id,
        name=facts.key.name,
        start_layer=info.start_layer,
        stack_layers=info.stack_layers,
        layers=info.layers,
        prefetch_step=info.prefetch_step,
        windows=info.windows,
        transport=info.transport,
        kind=info.kind,
        sharing=info.sharing,
        group_ranks=tuple(facts.key.group_ranks),
        ranks=tuple(_rank(rank) for rank in facts.ranks),
        stragglers=tuple(map(_straggler, facts.stragglers)),
        findings=verdict(facts, steps, ranks).findings,
    )


def _rank(facts: SeriesRankFacts) -> SeriesRankSummary:
    info, totals, recent = facts.info, facts.totals, facts.recent
    compared = info.lockstep and len(info.group_ranks) > 1
    return SeriesRankSummary(
        rank=facts.rank.rank,
        host=facts.host,
        steps=totals.steps,
        untimed_steps=dict(totals.untimed_steps),
        aborted_steps=totals.aborted_steps,
        unwaited_steps=totals.unwaited_steps,
        recent_steps=recent.steps,
        step_seconds=_mean(recent.step_ns, recent.steps),
        stall_seconds=_mean(recent.stall_ns, recent.steps) if info.shared else None,
        stall_ratio=recent.stall_ratio,
        on_time_rate=recent.on_time_rate,
        efficiency=recent.efficiency,
        bandwidth_bytes_per_second=recent.bandwidth,
        cause_seconds={cause.value: int(ns) * _NS for cause, ns in recent.cause_ns.items()},
        excess_seconds=_mean(recent.excess_ns, recent.path_steps) if compared else None,
        broadcast_bytes=int(totals.bytes),
        owned_bytes=info.owned_bytes,
        window_bytes=info.window_bytes,
        held_bytes=facts.held_bytes,
        replicated_bytes=info.replicated_bytes,
        saved_ratio=1 - facts.held_bytes / info.replicated_bytes if info.shared and info.replicated_bytes else None,
    )


def _straggler(facts: Straggler) -> StragglerSummary:
    return StragglerSummary(
        ranks=tuple(rank.rank for rank in facts.ranks),
        excess_seconds=int(facts.excess_ns) * _NS,
        share=float(facts.share),
        pattern=facts.pattern.value,
        often=float(facts.often),
        period=facts.period,
        phase=None if facts.phase is None else facts.phase.name.lower(),
        since_step=facts.since_step,
    )


def _refused(rank: ObservedRank) -> tuple[RefusedSummary, ...]:
    identity = rank.identity
    return tuple(
        RefusedSummary(run_id=identity.run_id, rank=identity.rank, name=info.name, reason=info.refused)
        for info in rank.series
        if info.refused
    )


def _ring(rank: ObservedRank) -> RingSummary:
    identity, counters = rank.identity, rank.ring.statistics
    return RingSummary(
        run_id=identity.run_id,
        rank=identity.rank,
        alive=rank.ring.alive,
        written=counters.written,
        delivered=counters.delivered,
        lost=counters.lapped + counters.damaged,
        pending=counters.pending,
    )


def _mean(total_ns: int, count: int) -> float | None:
    return int(total_ns) * _NS / count if count else None


def _series_from_json(document: Mapping[str, Any]) -> SeriesSummary:
    from swtrace.diagnosis.finding import Finding

    fields = dict(document)
    fields["layers"] = tuple(fields["layers"])
    fields["group_ranks"] = tuple(fields["group_ranks"])
    fields["ranks"] = tuple(SeriesRankSummary(**rank) for rank in fields["ranks"])
    fields["findings"] = tuple(map(Finding.from_json, fields["findings"]))
    fields["stragglers"] = tuple(
        StragglerSummary(**{**each, "ranks": tuple(each["ranks"])}) for each in fields["stragglers"]
    )
    return SeriesSummary(**fields)
