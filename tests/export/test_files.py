"""Tables hold every row, and an output replaces a file only when it is whole."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from swtrace.errors import SwtraceError
from swtrace.export.files import opened
from swtrace.session import Session
from tests.support.commands import checked
from tests.support.exported_run import STEPS


@pytest.mark.parametrize("table", ["waits", "steps"])
def test_tables_hold_every_row_and_the_ledgers_sums(
    recording: Path, session: Session, tmp_path: Path, table: str
) -> None:
    """CSV and Parquet have the same rows, and their columns sum up to the ledger's facts."""
    as_csv, as_parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    checked("export", recording, "-f", "csv", "-o", as_csv, "--table", table)
    done = checked("export", recording, "-f", "parquet", "-o", as_parquet, "--table", table, "--json")
    said = json.loads(done.stdout)
    with as_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = parquet.read_table(as_parquet).to_pydict()
    assert list(rows[0]) == list(columns)
    for name, column in columns.items():
        assert [row[name] for row in rows] == [str(int(v) if isinstance(v, bool) else v) for v in column]
    facts = session.sums()
    assert sum(columns["stall_ns"]) == facts.stall_ns
    assert sum(columns["slack_ns"]) == facts.slack_ns
    assert sum(columns["transfer_ns"]) == facts.transfer_ns
    assert said["rows"] == len(rows)
    recorded = [step.present if table == "waits" else step.ended for step in session.steps()]
    assert said["left_out"] == sum(int(each.sum()) for each in recorded) - len(rows) > 0
    assert f"left out {said['left_out']} rows of aborted or unfinished steps" in done.stderr
    if table == "waits":
        assert len([o for o in columns["outcome"] if o in {"on_time", "stalled"}]) == facts.waits
        assert columns["outcome"].count("on_time") == facts.on_time
    else:
        assert sum(columns["duration_ns"]) == facts.step_ns
        assert len(rows) == facts.steps == 3 * (STEPS - 1)


def test_an_export_that_breaks_off_leaves_the_file_of_before(tmp_path: Path) -> None:
    """An error halfway removes only what was written; a pipe gets every byte at once."""
    path, pipe = tmp_path / "table.csv", tmp_path / "pipe"
    path.write_bytes(b"before")
    with pytest.raises(SwtraceError, match=r"table\.csv: No space"), opened(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"before"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader, opened(pipe) as out:
        out.write(b"whole")
        out.flush()
        assert reader.read() == b"whole"
    assert {each.name for each in tmp_path.iterdir()} == {"table.csv", "pipe"}


EXPORTING = """
import sys, time
from pathlib import Path
from swtrace.export.files import opened
with opened(Path(sys.argv[1])) as out:
    print("open", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """A temporary file that nobody writes any more is removed; that of an export in progress stays."""
    exports = [
        subprocess.Popen([sys.executable, "-c", EXPORTING, tmp_path / "x"], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for export in exports:
            assert export.stdout is not None
            assert export.stdout.readline() == b"open\n"
        assert len(list(tmp_path.iterdir())) == 2
        exports[0].kill()
        exports[0].wait()
        with opened(tmp_path / "y") as out:
            out.write(b"whole")
        assert len(list(tmp_path.glob(".swtrace-*.part"))) == 1
    finally:
        for export in exports:
            export.kill()
            export.communicate()
