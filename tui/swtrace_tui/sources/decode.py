"""The daemon's JSON documents back into the ledger's facts: the other side of ``swtrace.daemon.api``.

A view cannot tell facts that came over HTTP from those of a ledger in its own process. What a daemon
does not know is null there, and 0 or False here, under the same masks as in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import (
    CAUSES,
    Cause,
    CriticalPath,
    Distribution,
    LedgerFacts,
    Oddities,
    Outcome,
    RankFacts,
    Recent,
    SeriesFacts,
    SeriesKey,
    SeriesRankFacts,
    StepFacts,
    Straggler,
    Totals,
)
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo, UntracedRank
from swtrace.trace.reader import Occupancy, RingStatistics, WindowState
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase
from swtrace_tui.snapshot import RankView

Document = Mapping[str, Any]

CELL_FIELDS = (
    *("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns", "stall_ns", "wake_ns", "slack_ns", "last_issue_ns"),
    *("late_rank", "backlog_ns", "transfer_ns", "cause_ns", "window", "reach_position", "observed", "clock", "flags"),
    *("receiver", "on_time", "attributed", "launched_ns"),
)
_INFO = tuple(SeriesInfo.__dataclass_fields__)
_IDENTITY = tuple(RankIdentity.__dataclass_fields__)
_ODDITIES = tuple(Oddities.__dataclass_fields__)
_DISTRIBUTIONS = ("stall", "slack", "sent_duration", "received_duration")


def rank_view(document: Document, taken_ns: int) -> RankView:
    """Decode a rank with its ring, its series and its windows."""
    ring, anchor = document["ring"], document["anchor"]
    return RankView(
        identity=identity(document),
        alive=bool(document["up"]),
        closed=bool(document["closed"]),
        died=bool(document["died"]),
        statistics=RingStatistics(**{name: int(ring[name]) for name in RingStatistics._fields if name in ring}),
        series=tuple(series_info(entry) for entry in document["series"]),
        windows={
            entry["name"]: tuple(_window(window) for window in entry["windows_now"])
            for entry in document["series"]
            if not entry["refused"]
        },
        before=0,
        taken_ns=taken_ns,
        wall_offset_ns=int(anchor["realtime_ns"]) - int(anchor["monotonic_ns"]),
    )


def identity(document: Document) -> RankIdentity:
    """Decode who wrote a ring."""
    return RankIdentity(**{name: document[name] for name in _IDENTITY if name in document})


def series_info(document: Document) -> SeriesInfo:
    """Decode the constants of a series on one rank."""
    fields = {name: document[name] for name in _INFO if name in document}
    untraced = tuple(UntracedRank(**rank) for rank in document.get("untraced", ()))
    return SeriesInfo(**{**fields, "group_ranks": tuple(document["group_ranks"]), "untraced": untraced})


def _window(document: Document) -> WindowState:
    numbers = {name: int(document[name] or 0) for name in WindowState._fields if name != "state"}
    return WindowState(state=Occupancy(document["state"]), **numbers)


def ledger_facts(document: Document) -> LedgerFacts:
    """Decode what the daemon's ledger states."""
    return LedgerFacts(
        ranks=tuple(
            RankFacts(
                identity=identity(rank),
                records=int(rank["records"]),
                last_record_ns=int(rank["last_record_ns"]),
                oddities=Oddities(**{name: int((rank["oddities"] or {}).get(name, 0)) for name in _ODDITIES}),
            )
            for rank in document["ranks"]
        ),
        series=tuple(_series(series) for series in document["series"]),
        steps_untaken=0,
    )


def series_keys(document: Document) -> dict[str, SeriesKey]:
    """Return the key of each series by the id that steps name it by."""
    return {series["id"]: _key(series) for series in document["series"]}


def _key(series: Document) -> SeriesKey:
    return SeriesKey(series["run_id"], series["name"], int(series["start_layer"]), tuple(series["group_ranks"]))


def _series(series: Document) -> SeriesFacts:
    key, straggler = _key(series), series["straggler"]
    return SeriesFacts(
        key=key,
        ranks=tuple(_series_rank(key, rank) for rank in series["ranks"]),
        steps=int(series["steps"]),
        straggler=straggler
        and Straggler(
            rank=RankKey(key.run_id, int(straggler["rank"])),
            excess_ns=int(straggler["excess_ns"]),
            next_excess_ns=int(straggler["next_excess_ns"]),
            share=float(straggler["share"]),
            consistency=float(straggler["consistency"]),
        ),
        pending_steps=int(series["pending_steps"]),
        clocks=int(series["clocks"]),
        impossible_steps=int(series["impossible_steps"]),
    )


def _series_rank(key: SeriesKey, document: Document) -> SeriesRankFacts:
    recent = {name: document["recent"][name] for name in Recent.__dataclass_fields__}
    return SeriesRankFacts(
        rank=RankKey(key.run_id, int(document["rank"])),
        info=series_info(document["info"]),
        totals=_totals(document["totals"]),
        recent=Recent(**{**recent, "cause_ns": _causes(recent["cause_ns"])}),
        last_step=document["last_step"],
        last_stall_ns=document["last_stall_ns"],
        effective_prefetch_step=document["effective_prefetch_step"],
    )


def _causes(by_name: Document) -> dict[Cause, int]:
    return {cause: int(by_name.get(str(cause), 0)) for cause in CAUSES}


def _totals(document: Document) -> Totals:
    fields = {name: document[name] for name in Totals.__dataclass_fields__ if name in document}
    fields["waits"] = {outcome: int(document["waits"].get(str(outcome), 0)) for outcome in Outcome}
    fields["cause_ns"] = _causes(document["cause_ns"])
    fields["untimed_steps"] = dict(document.get("untimed_steps", {}))  # an older daemon knows of none
    fields.update({name: _distribution(document[name]) for name in _DISTRIBUTIONS})
    fields["step_duration"] = {phase: _distribution(each) for phase, each in document["step_duration"].items()}
    return Totals(**fields)


def _distribution(document: Document) -> Distribution:
    return Distribution(tuple(document["bounds_ns"]), tuple(document["counts"]), int(document["sum_ns"]))


def step_facts(document: Document, key: SeriesKey, infos: Mapping[int, SeriesInfo]) -> StepFacts:
    """Decode a finished step.

    Args:
        document: The step.
        key: Its series.
        infos: Constants of the series by group rank, for the ranks that the daemon reads.
    """
    ranks, path = len(key.group_ranks), document["path"]
    return StepFacts(
        series=key,
        step=int(document["step"]),
        ranks=tuple(RankKey(key.run_id, rank) for rank in key.group_ranks),
        infos=tuple(infos.get(rank) for rank in range(ranks)),
        present=np.array(document["present"], np.bool_),
        ended=np.array(document["ended"], np.bool_),
        complete=bool(document["complete"]),
        **{name: _numbers(document[name]) for name in _CELLS_NS},
        observed=_numbers(document["observed"], _named(Observed)).astype(np.uint8),
        clock=_numbers(document["clock"], _named(Clock)).astype(np.uint8),
        launched_ns=_numbers(document["launched_ns"]),
        flags=_numbers(document["flags"]).astype(np.uint8),
        window=_numbers(document["window"], missing=NO_WINDOW).astype(np.uint16),
        reach_position=_numbers(document["reach_position"]).astype(np.uint16),
        source=np.array(document["source"], np.uint16),
        receiver=_numbers(document["receiver"]).astype(np.bool_),
        on_time=_numbers(document["on_time"]).astype(np.bool_),
        attributed=_numbers(document["attributed"]).astype(np.bool_),
        late_rank=_numbers(document["late_rank"], missing=-1).astype(np.int32),
        cause_ns=np.stack([_numbers(cause) for cause in document["cause_ns"]]),
        begin_ns=_numbers(document["begin_ns"]),
        arrival_ns=_numbers(document["arrival_ns"]),
        end_ns=_numbers(document["end_ns"]),
        phase=_numbers(document["phase"], _named(Phase)).astype(np.uint8),
        tokens=_numbers(document["tokens"]).astype(np.uint32),
        requests=_numbers(document["requests"]).astype(np.uint32),
        run_delay_us=_numbers(document["run_delay_us"]).astype(np.uint32),
        steal_us=_numbers(document["steal_us"]).astype(np.uint32),
        step_flags=_numbers(document["step_flags"]).astype(np.uint8),
        waits=_numbers(document["waits"]).astype(np.uint16),
        comparable=bool(document["comparable"]),
        entry_skew_ns=_numbers(document["entry_skew_ns"]),
        path=path
        and CriticalPath(
            last_rank=int(path["last_rank"]),
            compute_ns=_numbers(path["compute_ns"]),
            excess_ns=_numbers(path["excess_ns"]),
            entry_ns=_numbers(path["entry_ns"]),
            transfer_ns=int(path["transfer_ns"]),
            wake_ns=int(path["wake_ns"]),
            length_ns=int(path["length_ns"]),
        ),
    )


_CELLS_NS = (
    *("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns", "stall_ns", "wake_ns", "slack_ns"),
    *("last_issue_ns", "backlog_ns", "transfer_ns"),
)


def _named(kind: type[Observed | Clock | Phase]) -> dict[str, int]:
    return {member.name.lower(): int(member) for member in kind}


def _numbers(values: Sequence[Any], names: Mapping[str, int] | None = None, missing: int = 0) -> npt.NDArray[np.int64]:
    """Return lists of numbers, or of names that stand for numbers, as an array; null is ``missing``."""

    def number(value: Any) -> int:
        if value is None:
            return missing
        return names.get(value, 0) if names is not None and isinstance(value, str) else int(value)

    if values and isinstance(values[0], list):
        return np.array([[number(value) for value in row] for row in values], np.int64)
    return np.array([number(value) for value in values], np.int64)
