"""Facts as tables of numpy arrays, which convert to pandas, polars or pyarrow if these are installed.

:func:`wait_columns` makes one row per step, rank and layer, :func:`step_columns` one row per step and rank. Instants
and durations are integers in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from swtrace.errors import SwtraceError
from swtrace.ledger.facts import CAUSES, Outcome, SeriesKey, StepFacts
from swtrace.selection import Picked
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase, TransferFlag
from swtrace.units import counted

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Column = npt.NDArray[Any]


def _names(values: Iterable[tuple[int, str]]) -> Column:
    """Return an array that maps numbers to names; numbers without a name map to ``unknown``."""
    table = np.full(256, "unknown", object)
    for number, name in values:
        table[number] = name.lower()
    return table


_PHASES = _names((each.value, each.name) for each in Phase)
_OBSERVED = _names((each.value, each.name) for each in Observed)
_CLOCKS = _names((each.value, each.name) for each in Clock)


class Table(Mapping[str, Column]):
    """Columns of equal length, by name."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> Column:
        """Return a column."""
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of columns, because a table is a mapping. :attr:`rows` is the number of rows."""
        return len(self._columns)

    def __repr__(self) -> str:
        """Return the number of rows and the names of the columns."""
        return f"<Table of {counted(self.rows, 'row')}: {', '.join(self)}>"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values()), ()))

    def where(self, rows: npt.NDArray[np.bool_]) -> Table:
        """Return a table of the rows for which ``rows`` is true."""
        return Table({name: column[rows] for name, column in self.items()})

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas data frame.

        Raises:
            SwtraceError: pandas is not installed.
        """
        return _imported("pandas").DataFrame(dict(self))

    def to_polars(self) -> pl.DataFrame:
        """Return a polars data frame.

        Raises:
            SwtraceError: polars is not installed.
        """
        columns = {name: column.tolist() if column.dtype == object else column for name, column in self.items()}
        return _imported("polars").DataFrame(columns)

    def to_arrow(self) -> pa.Table:
        """Return a pyarrow table, with texts encoded as dictionaries.

        Raises:
            SwtraceError: pyarrow is not installed.
        """
        arrow = _imported("pyarrow")
        arrays = {
            name: arrow.array(column, arrow.string()).dictionary_encode()
            if column.dtype == object
            else arrow.array(column)
            for name, column in self.items()
        }
        return arrow.table(arrays)


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SwtraceError(f"{name} is not installed: pip install {name}") from error


def joined(parts: Iterable[dict[str, Column]], columns: Callable[[Picked], dict[str, Column]]) -> Table:
    """Concatenate the parts that ``columns`` made. Without parts, return a table with all columns and no row."""
    parts = list(parts) or [columns(_no_step())]
    return Table({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _no_step() -> Picked:
    """Return a step without ranks and layers, whose columns have names and types but no rows."""
    cells, ranks = np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
    values: dict[str, Any] = dict.fromkeys((each.name for each in fields(StepFacts)), cells)
    values |= dict.fromkeys(("begin_ns", "arrival_ns", "end_ns", "entry_skew_ns", "phase", "tokens", "requests"), ranks)
    values |= dict.fromkeys(("run_delay_us", "steal_us", "step_flags", "source"), ranks)
    values |= dict.fromkeys(("clock_shift_ns", "clock_bound_ns"), ranks)
    values |= dict.fromkeys(("present", "receiver", "on_time", "attributed"), cells.astype(np.bool_))
    values |= {
        "series": SeriesKey("", "", 0, ()),
        "step": 0,
        "ranks": (),
        "infos": (),
        "hosts": (),
        "layers": (),
        "complete": False,
        "path": None,
        "of_rank": None,
    }
    values |= {"ended": ranks.astype(np.bool_), "cause_ns": np.zeros((len(CAUSES), 0, 0), np.int64)}
    return Picked(StepFacts(**values), values["ended"], values["ended"])


def wait_columns(picked: Picked) -> dict[str, Column]:
    """Return the recorded layers of a step, one row per rank and layer."""
    step = picked.step
    cells = picked.cells & step.present
    rank, position = np.nonzero(cells)
    number = np.array([key.rank for key in step.ranks], np.int64)
    flags = step.flags[cells]
    window = step.window[cells].astype(np.int64)
    late = step.late_rank[cells]

    def text(value: str) -> Column:
        return np.full(len(rank), value, object)

    def flag(which: TransferFlag) -> Column:
        return np.asarray((flags & which) != 0, np.bool_)

    return {
        "run_id": text(step.series.run_id),
        "series": text(step.series.name),
        "step": np.full(len(rank), step.step, np.int64),
        "phase": _PHASES[np.where(step.ended, step.phase, Phase.OTHER)][rank],
        "rank": number[rank],
        "host": np.array(step.hosts, object)[rank],
        "layer": np.array(step.layers, np.int64)[position],
        "source_rank": np.where(step.from_ranks[rank], number[np.minimum(step.source[position], len(number) - 1)], -1),
        "window": np.where(window == NO_WINDOW, -1, window),
        "outcome": _outcomes(picked, cells),
        "issued_ns": step.issued_ns[cells],
        "ready_ns": step.ready_ns[cells],
        "wait_begin_ns": step.wait_begin_ns[cells],
        "wait_end_ns": step.wait_end_ns[cells],
        "stall_ns": step.stall_ns[cells],
        "wake_ns": step.wake_ns[cells],
        "slack_ns": step.slack_ns[cells],
        "attributed": step.attributed[cells],
        "last_issue_ns": step.last_issue_ns[cells],
        "late_rank": np.where(late >= 0, number[np.maximum(late, 0)], -1),
        "backlog_ns": step.backlog_ns[cells],
        "transfer_ns": step.transfer_ns[cells],
        **{f"stall_{cause}_ns": step.cause_ns[index][cells] for index, cause in enumerate(CAUSES)},
        "effective_prefetch_step": (position - step.reach_position[cells].astype(np.int64)) % step.present.shape[1],
        "crosses_steps": flag(TransferFlag.CROSSES_STEPS),
        "open": flag(TransferFlag.OPEN),
        "observed": _OBSERVED[step.observed[cells]],
        "clock": _CLOCKS[step.clock[cells]],
    }


def _outcomes(picked: Picked, cells: npt.NDArray[np.bool_]) -> Column:
    step = picked.step
    flags = step.flags[cells]
    outcome = np.full(len(flags), "unwaited", object)
    waited = (flags & TransferFlag.UNWAITED) == 0
    outcome[waited & ((flags & TransferFlag.OWN) != 0)] = Outcome.OWN.value
    outcome[waited & ((flags & TransferFlag.PREFILLED) != 0)] = Outcome.PREFILLED.value
    receiver, on_time = step.receiver[cells], step.on_time[cells]
    outcome[receiver & on_time] = Outcome.ON_TIME.value
    outcome[receiver & ~on_time] = Outcome.STALLED.value
    return outcome


def step_columns(picked: Picked) -> dict[str, Column]:
    """Return a step's sums over the selected layers, one row per rank."""
    step, ranks = picked.step, picked.ranks
    cells = picked.cells

    def total(values: npt.NDArray[Any]) -> Column:
        return np.asarray(np.where(cells, values, 0).sum(axis=-1)[..., ranks], np.int64)

    def text(value: str) -> Column:
        return np.full(int(ranks.sum()), value, object)

    excess = np.zeros(len(ranks), np.int64) if step.path is None else step.path.excess_ns
    return {
        "run_id": text(step.series.run_id),
        "series": text(step.series.name),
        "start_layer": np.full(int(ranks.sum()), step.series.start_layer, np.int64),
        "step": np.full(int(ranks.sum()), step.step, np.int64),
        "phase": _PHASES[step.phase[ranks]],
        "rank": np.array([key.rank for key in step.ranks], np.int64)[ranks],
        "host": np.array(step.hosts, object)[ranks],
        "begin_ns": step.begin_ns[ranks],
        "arrival_ns": step.arrival_ns[ranks],
        "end_ns": step.end_ns[ranks],
        "duration_ns": step.duration_ns[ranks],
        "stall_ns": total(step.stall_ns),
        "wake_ns": total(step.wake_ns),
        "slack_ns": total(step.slack_ns),
        "transfer_ns": total(step.transfer_ns),
        "waits": total(step.receiver),
        "on_time": total(step.on_time),
        **{f"stall_{cause}_ns": total(step.cause_ns[index]) for index, cause in enumerate(CAUSES)},
        "entry_skew_ns": step.entry_skew_ns[ranks],
        "clock_shift_ns": step.clock_shift_ns[ranks],
        "clock_bound_ns": step.clock_bound_ns[ranks],
        "excess_ns": excess[ranks],
        "tokens": step.tokens[ranks].astype(np.int64),
        "requests": step.requests[ranks].astype(np.int64),
        "run_delay_us": step.run_delay_us[ranks].astype(np.int64),
        "steal_us": step.steal_us[ranks].astype(np.int64),
        "complete": np.full(int(ranks.sum()), step.complete, np.bool_),
    }
