"""The live API, version 1: snapshots as JSON documents, described in ``docs/api.md``.

Field names are those of the ledger and do not change; fields may be added. Instants and durations are integers in
nanoseconds (``*_ns``), and instants are on the clock of the rank that recorded them. Those of a step's ranks are on one
clock as far as their clocks are aligned. Arrays are indexed ``[group rank][position]`` or ``[group rank]``; unknown
values are null.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from swtrace import units
from swtrace.daemon.snapshot import watched_sources
from swtrace.errors import SwtraceError
from swtrace.ledger.comparison import compare
from swtrace.ledger.facts import CAUSES
from swtrace.observing.observation import series_key
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from swtrace.daemon.snapshot import NumberedStep, Snapshot
    from swtrace.ledger.alignment import AlignedClock
    from swtrace.ledger.comparison import Comparison
    from swtrace.ledger.facts import RankFacts, SeriesFacts, SeriesKey, SeriesRankFacts, StepFacts, Straggler
    from swtrace.observing import ObservedRank
    from swtrace.observing.observation import SeriesEntry
    from swtrace.trace.identity import SeriesInfo

Document = dict[str, Any]

VERSION = 1
DEFAULT_LIMIT = 8
MAX_LIMIT = 64

CELL_FIELDS = (
    "issued_ns",
    "launched_ns",
    "ready_ns",
    "wait_begin_ns",
    "wait_end_ns",
    "stall_ns",
    "wake_ns",
    "slack_ns",
    "last_issue_ns",
    "late_rank",
    "backlog_ns",
    "transfer_ns",
    "cause_ns",
    "window",
    "reach_position",
    "observed",
    "clock",
    "flags",
    "receiver",
    "on_time",
    "attributed",
)
"""Fields of a step that are arrays of ``[group rank][position]``. A request may select some of them."""

RANK_FIELDS = (
    "begin_ns",
    "arrival_ns",
    "end_ns",
    "duration_ns",
    "entry_skew_ns",
    "phase",
    "tokens",
    "requests",
    "waits",
    "run_delay_us",
    "steal_us",
    "step_flags",
)
"""Fields of a step that are arrays of ``[group rank]``."""


class QueryError(SwtraceError):
    """A request has an unknown parameter or an invalid value."""


class UnknownError(SwtraceError):
    """A request selects a run or a series that the daemon does not see."""


@dataclass(frozen=True, slots=True)
class Query:
    """The part of a snapshot that a request asks for."""

    run: str | None = None
    series: str | None = None
    """Id or name of a series."""
    since: int = 0
    """Return only steps with a higher number."""
    limit: int = DEFAULT_LIMIT
    """Return at most this many steps per series, the newest ones; of a pull series, per rank."""
    fields: tuple[str, ...] = CELL_FIELDS

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Query:
        """Read the query string of a request."""
        check_names(parameters, "run", "series", "since", "limit", "fields")
        fields = tuple(name for name in parameters.get("fields", "").split(",") if name) or CELL_FIELDS
        for name in fields:
            if name not in CELL_FIELDS:
                raise QueryError(f"fields={name!r}: must be one of: {', '.join(CELL_FIELDS)}")
        return cls(
            run=parameters.get("run"),
            series=parameters.get("series"),
            since=whole_number(parameters, "since", 0, (1 << 63) - 1),
            limit=whole_number(parameters, "limit", DEFAULT_LIMIT, MAX_LIMIT),
            fields=fields,
        )

    def check(self, snapshot: Snapshot) -> None:
        """Check that the selected run and series exist.

        Raises:
            UnknownError: one of them does not. The message lists those that do.
        """
        observation = snapshot.observation
        keys = {facts.key for facts in observation.facts.series}
        runs = {rank.identity.run_id for rank in observation.ranks} | {key.run_id for key in keys}
        tables = {(rank.identity.run_id, info.name) for rank in observation.ranks for info in rank.series}
        names = {name for run, name in tables | {(key.run_id, key.name) for key in keys} if self.wants_run(run)}
        ids = {series_id(key) for key in keys if self.wants_run(key.run_id)}
        for parameter, asked, known, shown in (
            ("run", self.run, runs, runs),
            ("series", self.series, names | ids, names),
        ):
            if asked is not None and asked not in known:
                there = f"must be one of: {', '.join(sorted(shown))}" if shown else "there are none"
                raise UnknownError(f"{parameter}={asked!r} does not exist; {there}")

    def wants_run(self, run_id: str) -> bool:
        """Return whether the run is selected."""
        return self.run in {None, run_id}

    def wants(self, key: SeriesKey) -> bool:
        """Return whether the series is selected."""
        return self.wants_run(key.run_id) and self.series in {None, key.name, series_id(key)}


def series_id(key: SeriesKey) -> str:
    """Return the id of a series in this API. It is the same in every daemon and after a restart."""
    return f"{key.run_id}/{key.name}@{key.start_layer}/{units.ranges(key.group_ranks)}"


def everything(snapshot: Snapshot, query: Query) -> Document:
    """Return all documents of one snapshot, which is what a live view needs."""
    return {
        **moment(snapshot),
        **ranks(snapshot, query),
        **series(snapshot, query),
        **steps(snapshot, query),
        **health(snapshot),
    }


def moment(snapshot: Snapshot) -> Document:
    """Return when the snapshot was taken, and the number of the newest step in it."""
    return {
        "api": VERSION,
        "taken_ns": snapshot.observation.taken_ns,
        "taken_unix_ns": snapshot.taken_realtime_ns,
        "started_unix_ns": snapshot.started_realtime_ns,
        "cursor": snapshot.cursor,
        "caught_up": snapshot.observation.caught_up,
    }


def health(snapshot: Snapshot) -> Document:
    """Return unreadable rings, odd records, the watched daemons, and the statistics of the span export."""
    return {
        "watched": None
        if snapshot.watched is None
        else {
            "every": snapshot.watched.every,
            "sources": [asdict(source) for source in watched_sources(snapshot)],
        },
        "problems": [{"path": path, "message": text} for path, text in sorted(snapshot.observation.problems.items())],
        "oddities": [
            {"run_id": facts.identity.run_id, "rank": facts.identity.rank, **asdict(facts.oddities)}
            for facts in snapshot.observation.facts.ranks
        ],
        "spans": {
            "exported": snapshot.spans.exported,
            "dropped": {str(reason): spans for reason, spans in snapshot.spans.dropped.items()},
            "queued": snapshot.spans.queued,
            "unsampled_steps": snapshot.spans.unsampled_steps,
            "untaken_steps": snapshot.observation.facts.steps_untaken,
        },
    }


def ranks(snapshot: Snapshot, query: Query) -> Document:
    """Return every rank with its ring, its series table and its windows."""
    observation = snapshot.observation
    known = observation.rank_facts()
    return {
        "ranks": [
            _rank(rank, known.get(rank.key)) for rank in observation.ranks if query.wants_run(rank.identity.run_id)
        ]
    }


def windows(snapshot: Snapshot, query: Query) -> Document:
    """Return the windows of every rank and series."""
    return {
        "windows": [
            {
                "run_id": rank.identity.run_id,
                "rank": rank.identity.rank,
                "series": series_id(series_key(rank.key, entry.info)),
                "windows": _windows(entry),
            }
            for rank in snapshot.observation.ranks
            for entry in rank.entries()
            if not entry.info.refused and query.wants(series_key(rank.key, entry.info))
        ]
    }


def series(snapshot: Snapshot, query: Query) -> Document:
    """Return every series with the facts of each of its ranks."""
    return {"series": [_series(facts) for facts in snapshot.observation.facts.series if query.wants(facts.key)]}


def steps(snapshot: Snapshot, query: Query) -> Document:
    """Return the last finished steps in the order in which they finished, and how many the limit left out."""
    chosen: list[NumberedStep] = []
    skipped = 0
    for (key, _), finished in snapshot.steps.items():
        if query.wants(key):
            newer = [numbered for numbered in finished if numbered.number > query.since]
            kept = newer[len(newer) - min(query.limit, len(newer)) :]
            skipped += len(newer) - len(kept)
            chosen += kept
    chosen.sort(key=lambda numbered: numbered.number)
    return {
        "causes": [str(cause) for cause in CAUSES],
        "steps": [_step(numbered, query.fields) for numbered in chosen],
        "skipped": skipped,
    }


def _rank(rank: ObservedRank, facts: RankFacts | None) -> Document:
    ring = rank.ring
    statistics = ring.statistics
    return {
        **asdict(rank.identity),
        "up": ring.alive,
        "closed": ring.closed,
        "died": rank.died,
        "down_for_ns": ring.taken_ns - ring.down_since_ns if ring.down_since_ns else 0,
        "anchor": {"monotonic_ns": ring.anchor.monotonic_ns, "realtime_ns": ring.anchor.realtime_ns},
        "virtual_offset_ns": rank.run_began_ns,
        "records": facts.records if facts else 0,
        "last_record_ns": facts.last_record_ns if facts else 0,
        "oddities": asdict(facts.oddities) if facts else None,
        "ring": {
            "path": ring.path,
            "written": statistics.written,
            "delivered": statistics.delivered,
            "lapped": statistics.lapped,
            "damaged": statistics.damaged,
            "skipped": statistics.skipped,
            "pending": statistics.pending,
            "lag_ns": ring.lag_ns,
        },
        "series": [
            {
                "index": entry.index,
                "series": None if entry.info.refused else series_id(series_key(rank.key, entry.info)),
                **_info(entry.info),
                "windows_now": _windows(entry),
            }
            for entry in rank.entries()
        ],
    }


def _windows(entry: SeriesEntry) -> list[Document]:
    """Return the windows of a series. Free windows have no step, position or layer."""
    return [
        {
            "window": window.window,
            "state": window.state,
            "step": None if window.state == "free" else window.step,
            "position": None if window.state == "free" else window.position,
            "layer": None if window.state == "free" else entry.info.layers[window.position],
            "issued_ns": window.issued_ns,
            "ready_ns": window.ready_ns,
            "in_use_ns": window.in_use_ns,
            "since_ns": window.since_ns,
        }
        for window in entry.windows
    ]


def _info(info: SeriesInfo) -> Document:
    return {
        **asdict(info),
        "num_layers": info.num_layers,
        "owned_bytes": info.owned_bytes,
        "window_bytes": info.window_bytes,
        "replicated_bytes": info.replicated_bytes,
    }


def _series(facts: SeriesFacts) -> Document:
    compared = compare(facts)
    return {
        "id": series_id(facts.key),
        "run_id": facts.key.run_id,
        "name": facts.key.name,
        "start_layer": facts.key.start_layer,
        "group_ranks": list(facts.key.group_ranks),
        "steps": facts.steps,
        "pending_steps": facts.pending_steps,
        "clocks": facts.clocks,
        "alignment": [_aligned(facts, clock) for clock in facts.alignment],
        "impossible_steps": facts.impossible_steps,
        "stragglers": [_straggler(straggler) for straggler in facts.stragglers],
        "plan": compared and _compared(compared),
        "ranks": [_series_rank(rank) for rank in facts.ranks],
    }


def _straggler(straggler: Straggler) -> Document:
    return {
        **asdict(straggler),
        "ranks": [rank.rank for rank in straggler.ranks],
        "phase": None if straggler.phase is None else straggler.phase.name.lower(),
    }


def _compared(compared: Comparison) -> Document:
    return {
        **asdict(compared.planned),
        "differs": compared.differs,
        "worse": list(compared.worse),
        "measured": {
            "steps": compared.steps,
            "tokens": compared.tokens,
            "step_ns": compared.step_ns,
            "stall_ratio": compared.stall_ratio,
        },
    }


def _aligned(facts: SeriesFacts, clock: AlignedClock) -> Document:
    return {
        "ranks": [facts.key.group_ranks[rank] for rank in clock.group_ranks],
        "offset_ns": clock.offset_ns,
        "bound_ns": None if clock.offset_ns is None else clock.bound_ns,
        "drift": clock.drift,
        "method": clock.method,
        "restarts": clock.restarts,
    }


def _series_rank(facts: SeriesRankFacts) -> Document:
    recent = facts.recent
    return {
        "rank": facts.rank.rank,
        "host": facts.host,
        "info": _info(facts.info),
        "last_step": facts.last_step,
        "last_stall_ns": facts.last_stall_ns,
        "effective_prefetch_step": facts.effective_prefetch_step,
        "totals": _plain(asdict(facts.totals)),
        "recent": {
            **_plain(asdict(recent)),
            "stall_ratio": recent.stall_ratio,
            "on_time_rate": recent.on_time_rate,
            "efficiency": recent.efficiency,
            "bandwidth": recent.bandwidth,
        },
    }


def _plain(facts: Mapping[str, Any]) -> Document:
    """Return the facts with enumeration keys as plain text."""
    return {
        name: {str(key): number for key, number in value.items()} if isinstance(value, dict) else value
        for name, value in facts.items()
    }


def _step(numbered: NumberedStep, fields: Iterable[str]) -> Document:
    step = numbered.step
    return {
        "number": numbered.number,
        "series": series_id(step.series),
        "step": step.step,
        "ranks": [rank.rank for rank in step.ranks],
        "rank": None if step.only_rank is None else step.only_rank.rank,
        "complete": step.complete,
        "comparable": step.comparable,
        "aborted": step.aborted,
        "layers": step.layers,
        "source": step.source.tolist(),
        "present": step.present.tolist(),
        "ended": step.ended.tolist(),
        "clock_shift_ns": step.clock_shift_ns.tolist(),
        "clock_bound_ns": step.clock_bound_ns.tolist(),
        **{name: _by_rank(step, name) for name in RANK_FIELDS},
        **{name: _by_cell(step, name) for name in fields},
        "path": step.path and {name: np.asarray(value).tolist() for name, value in asdict(step.path).items()},
    }


_NAMED = {
    "observed": {value.value: value.name.lower() for value in Observed},
    "clock": {value.value: value.name.lower() for value in Clock},
    "phase": {value.value: value.name.lower() for value in Phase},
}
"""Fields with numbers that only the ring's format defines. The API returns their names instead."""


def _by_rank(step: StepFacts, name: str) -> list[Any]:
    known = step.ended & step.entry_known if name == "entry_skew_ns" else step.ended
    return _named(name, _masked(getattr(step, name), known))


def _by_cell(step: StepFacts, name: str) -> list[Any]:
    """Return a cell field. A value is null without a record, or if the records do not determine it."""
    column = getattr(step, name)
    if name == "cause_ns":
        return [_masked(by_cause, step.present) for by_cause in column]
    known = step.present
    if name in {"last_issue_ns", "backlog_ns", "transfer_ns"}:
        known = known & step.attributed
    elif name == "late_rank":
        known = known & (column >= 0)
    elif name == "window":
        known = known & (column != NO_WINDOW)
    elif name in {"ready_ns", "wait_begin_ns", "wait_end_ns"}:
        known = known & (column > 0)
    return [_named(name, row) for row in _masked(column, np.asarray(known, np.bool_))]


def _masked(column: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> list[Any]:
    """Return an array as lists, with None for unknown values."""
    values = column.astype(object)
    values[~known] = None
    return list(values.tolist())


def _named(name: str, values: list[Any]) -> list[Any]:
    names = _NAMED.get(name)
    return values if names is None else [names.get(value, value) for value in values]


def check_names(parameters: Mapping[str, str], *known: str) -> None:
    """Refuse unknown parameters of a request.

    Raises:
        QueryError: a parameter is unknown. The message lists the known ones.
    """
    for name in parameters:
        if name not in known:
            raise QueryError(f"unknown parameter {name!r}; must be one of: {', '.join(known)}")


_MOST_DIGITS = 20
"""Python refuses to read numbers with thousands of digits."""


def whole_number(parameters: Mapping[str, str], name: str, default: int, highest: int, *, lowest: int = 0) -> int:
    """Return a parameter of a request that is a whole number.

    Raises:
        QueryError: the parameter is not a whole number, or is out of range.
    """
    text = parameters.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS or not lowest <= int(text) <= highest:
        raise QueryError(f"{name}={text!r}: must be a whole number from {lowest} to {highest}")
    return int(text)
