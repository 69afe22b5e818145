"""A table without rows has every column."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import parquet

from swtrace.session import RecordingSession, Session
from swtrace.trace.schema import Clock
from tests.support.commands import checked
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings


@pytest.mark.parametrize("table", ["waits", "steps"])
def test_a_table_without_rows_has_every_column(session: Session, tmp_path: Path, table: str) -> None:
    """If nothing matches or nothing was timed, columns keep their names and types, both in files and in Python."""
    question = session.waits if table == "waits" else session.step_table
    full, empty = question(), question(layer=99)
    assert (full.rows > 0, empty.rows) == (True, 0)
    assert {name: column.dtype for name, column in empty.items()} == {name: each.dtype for name, each in full.items()}
    assert empty.to_arrow().schema == full.to_arrow().schema
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_untimed()
    run.close()
    path = tmp_path / "run.swrec"
    record_rings(tmp_path / "rings", path)
    for form in ("csv", "parquet"):
        checked("export", path, "-f", form, "-o", tmp_path / form, "--table", table)
    assert (tmp_path / "csv").read_text() == ",".join(full) + "\n"
    assert parquet.read_table(tmp_path / "parquet").schema.equals(full.to_arrow().schema)


def test_rows_say_on_which_host_a_rank_is_and_by_how_much_its_clock_was_shifted(tmp_path: Path) -> None:
    """Each row has the rank's host. Steps have what was added to its instants, with the bound: 0 on the first host."""
    run = RecordedRun(tmp_path / "rings", hosts=("gpu-a", "gpu-b"), ahead_ns=10**9)
    run.write(4)
    run.close()
    record_rings(tmp_path / "rings", tmp_path / "run.swrec")
    with RecordingSession(tmp_path / "run.swrec") as session:
        table, waits = session.step_table(), session.waits()
    for each in (table, waits):
        assert set(zip(each["rank"].tolist(), each["host"], strict=True)) == {(0, "gpu-a"), (1, "gpu-b")}
    shift, bound, second = table["clock_shift_ns"], table["clock_bound_ns"], table["rank"] == 1
    assert not shift[~second].any()
    assert not bound[~second].any()
    assert (abs(shift[second] + 10**9) <= bound[second]).all()


def test_layers_from_host_memory_have_no_source_rank(tmp_path: Path, session: Session) -> None:
    """Their column has -1; that of a shared series has the owner's rank."""
    assert session.waits()["source_rank"].min() == 0
    rings = tmp_path / "rings"
    rings.mkdir()
    offloading(rings, Plan(), Durations())
    record_rings(rings, tmp_path / "run.swrec")
    with RecordingSession(tmp_path / "run.swrec") as offloaded:
        assert set(offloaded.waits()["source_rank"].tolist()) == {-1}
