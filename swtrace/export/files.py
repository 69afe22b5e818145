"""Tables as files, written some thousand rows at a time: CSV with the standard library, Parquet with pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from swtrace.errors import SwtraceError
from swtrace.ledger.facts import StepFacts
from swtrace.selection import Picked, Selection
from swtrace.tables import Column, Table, joined, step_columns, wait_columns

ROWS = 50_000
TABLES: dict[str, Callable[[Picked], dict[str, Column]]] = {"waits": wait_columns, "steps": step_columns}
"""One row per step, rank and layer; one row per step and rank."""


def write_csv(path: Path, steps: Iterable[StepFacts], table: str, selection: Selection) -> int:
    """Write a table as CSV with a header; return the number of rows."""
    rows = 0
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        for chunk in _chunks(steps, table, selection):
            if not rows:
                writer.writerow(chunk)
            writer.writerows(zip(*(_plain(column) for column in chunk.values()), strict=True))
            rows += chunk.rows
    return rows


def write_parquet(path: Path, steps: Iterable[StepFacts], table: str, selection: Selection) -> int:
    """Write a table as Parquet; return the number of rows.

    Raises:
        SwtraceError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet  # noqa: PLR0402 - the module, by its name
    except ImportError as error:
        raise SwtraceError("Parquet needs pyarrow: pip install pyarrow") from error
    rows = 0
    writer: Any = None
    try:
        for chunk in _chunks(steps, table, selection):
            arrow = chunk.to_arrow()
            if writer is None:
                writer = parquet.ParquetWriter(path, arrow.schema, compression="zstd")
            writer.write_table(arrow)
            rows += chunk.rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _chunks(steps: Iterable[StepFacts], table: str, selection: Selection) -> Iterator[Table]:
    columns, parts, rows = TABLES[table], list[dict[str, Column]](), 0
    for picked in selection.pick(steps):
        part = columns(picked)
        parts.append(part)
        rows += len(next(iter(part.values())))
        if rows >= ROWS:
            yield joined(parts, {})
            parts, rows = [], 0
    if rows:
        yield joined(parts, {})


def _plain(column: Column) -> list[Any]:
    """Return a column as Python values: CSV writes true and false as 1 and 0, which every tool reads."""
    values: list[Any] = (column.astype(np.int64) if column.dtype == np.bool_ else column).tolist()
    return values
