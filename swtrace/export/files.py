"""Exports as files: tables, written some thousand rows at a time as CSV or, with pyarrow, as Parquet."""

from __future__ import annotations

import csv
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def opened(where: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a file to write an export into, or take one that is open.

    A file gets its name when it is whole; until then, and if writing fails, what had that name stays. A link stays
    one. A device or a pipe is written directly.

    Raises:
        SwtraceError: it cannot be opened, or written to its end.
    """
    if not isinstance(where, Path):
        yield where
        where.flush()
        return
    try:
        with where.open("wb") if where.exists() and not where.is_file() else _beside(where) as out:
            yield out
    except OSError as error:
        raise SwtraceError(f"{where}: {error.strerror}") from error


@contextmanager
def _beside(where: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder; it takes the name when the block ends without an error."""
    file = Path(os.path.realpath(where))
    part = file.with_name(f".swtrace-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as out:
            if file.exists():
                file.open("r+b").close()  # what is read-only is not replaced
                shutil.copymode(file, part)
            yield out
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_csv(out: BinaryIO, steps: Iterable[StepFacts], table: str, selection: Selection) -> int:
    """Write a table as CSV with a header; return the number of rows."""
    rows = 0
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text)
        for chunk in _chunks(steps, table, selection):
            if not rows:
                writer.writerow(chunk)
            writer.writerows(zip(*(_plain(column) for column in chunk.values()), strict=True))
            rows += chunk.rows
    finally:
        text.detach()
    return rows


def write_parquet(out: BinaryIO, steps: Iterable[StepFacts], table: str, selection: Selection) -> int:
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
                writer = parquet.ParquetWriter(out, arrow.schema, compression="zstd")
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
