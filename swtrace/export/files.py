"""Export tables to files, some 50,000 rows at a time, as CSV or, with pyarrow, as Parquet."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swtrace.errors import SwtraceError
from swtrace.ledger.facts import StepFacts
from swtrace.selection import Picked, Selection
from swtrace.tables import Column, Table, joined, step_columns, wait_columns

ROWS = 50_000
TABLES: dict[str, Callable[[Picked], dict[str, Column]]] = {"waits": wait_columns, "steps": step_columns}
"""One row per step, rank and layer; one row per step and rank."""


@dataclass(slots=True)
class TableStatistics:
    """Counts of a table's rows."""

    rows: int = 0
    left_out: int = 0
    """Recorded rows that are not exported, because the step was aborted or its rank did not end it."""


@contextmanager
def opened(where: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a file for an export, or use one that is already open.

    A file is written under a temporary name and renamed when it is complete, so a failure keeps the earlier file.
    A symbolic link is followed. A device or a pipe is written directly.

    Raises:
        SwtraceError: the file cannot be opened or written.
    """
    if not isinstance(where, Path):
        yield where
        where.flush()
        return
    try:
        with where.open("wb") if where.exists() and not where.is_file() else _temporary(where) as out:
            yield out
    except OSError as error:
        raise SwtraceError(f"{where}: {error.strerror}") from error


@contextmanager
def _temporary(where: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder. Rename it to ``where`` when the block ends without an error."""
    file = Path(os.path.realpath(where))
    _remove_abandoned(file.parent)
    part, out = _locked_part(file.parent)
    try:
        with out:
            if file.exists():
                file.open("r+b").close()  # fails for a read-only file, which must not be replaced
                shutil.copymode(file, part)
            yield out
            out.flush()
            part.replace(file)  # still locked, so that no other export takes it for abandoned
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _locked_part(folder: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file and hold its lock."""
    while True:
        part = folder / f".swtrace-{secrets.token_hex(4)}.part"
        out = part.open("xb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(out, fcntl.LOCK_EX)
        if part.exists():  # not taken for abandoned before it was locked
            return part, out
        out.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of exports that were killed: nobody holds their locks."""
    for part in folder.glob(".swtrace-*.part"):
        with suppress(OSError), part.open("r+b") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def write_csv(out: BinaryIO, steps: Iterable[StepFacts], table: str) -> TableStatistics:
    """Write a table as CSV with a header."""
    statistics, header = TableStatistics(), False
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text)
        for chunk in _chunks(steps, table, statistics):
            if not header:
                header = True
                writer.writerow(chunk)
            writer.writerows(zip(*(_plain(column) for column in chunk.values()), strict=True))
    finally:
        text.detach()
    return statistics


def write_parquet(out: BinaryIO, steps: Iterable[StepFacts], table: str) -> TableStatistics:
    """Write a table as Parquet.

    Raises:
        SwtraceError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet  # noqa: PLR0402 - the module, by its name
    except ImportError as error:
        raise SwtraceError("Parquet needs pyarrow: pip install pyarrow") from error
    statistics = TableStatistics()
    writer: Any = None
    try:
        for chunk in _chunks(steps, table, statistics):
            arrow = chunk.to_arrow()
            if writer is None:
                writer = parquet.ParquetWriter(out, arrow.schema, compression="zstd")
            writer.write_table(arrow)
    finally:
        if writer is not None:
            writer.close()
    return statistics


def _chunks(steps: Iterable[StepFacts], table: str, statistics: TableStatistics) -> Iterator[Table]:
    """Yield the table in parts. Yield at least one, even if empty, because it has the columns."""
    columns, parts, rows = TABLES[table], list[dict[str, Column]](), 0

    def counted() -> Iterator[StepFacts]:
        for step in steps:
            statistics.left_out += int((step.present if table == "waits" else step.ended).sum())
            yield step

    for picked in Selection().pick(counted()):
        parts.append(columns(picked))
        added = len(next(iter(parts[-1].values())))
        rows += added
        statistics.rows += added
        statistics.left_out -= added
        if rows >= ROWS:
            yield joined(parts, columns)
            parts, rows = [], 0
    if rows or not statistics.rows:
        yield joined(parts, columns)


def _plain(column: Column) -> list[Any]:
    """Return a column as Python values, with booleans as 1 and 0, which every tool can read from CSV."""
    values: list[Any] = (column.astype(np.int64) if column.dtype == np.bool_ else column).tolist()
    return values
