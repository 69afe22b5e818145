"""Other tools read from an export the same facts as the ledger has."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

import swtrace as public
from swtrace.errors import SettingsError, SwtraceError
from swtrace.export.files import opened
from swtrace.session import Session
from swtrace.spans.step_spans import span_count
from swtrace.trace.schema import Clock
from tests.recording.test_commands import swtrace
from tests.support.perfetto_reader import read
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings
from tests.support.span_receiver import SpanReceiver

STEPS = 25


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of three ranks with one aborted step."""
    folder = tmp_path_factory.mktemp("export")
    run = RecordedRun(folder / "rings", ranks=3)
    run.write(STEPS - 1)
    run.write(aborted=True)
    run.close()
    record_rings(folder / "rings", folder / "run.swrec")
    return folder / "run.swrec"


@pytest.fixture(scope="module")
def session(recording: Path) -> Session:
    """Return its facts."""
    return public.open(recording)


def test_perfetto_reads_the_counts_and_durations_of_the_ledger(
    recording: Path, session: Session, tmp_path: Path
) -> None:
    """Read with Perfetto's schema, slices of waits, broadcasts and steps have the ledger's counts and durations."""
    path = tmp_path / "run.pftrace"
    said = json.loads(swtrace("export", recording, "-f", "perfetto", "-o", path, "--json").stdout)
    slices = read(path)
    steps = list(session.steps())
    of = {name: [each for each in slices if each.category == name] for name in ("step", "wait", "stall", "broadcast")}
    assert len(of["step"]) == said["steps"] == sum(int(step.ended.sum()) for step in steps)
    assert sum(each.end_ns - each.begin_ns for each in of["step"]) == sum(int(s.duration_ns.sum()) for s in steps)
    assert len(of["wait"]) == said["waits"] == sum(int(step.present.sum()) for step in steps)
    assert sum(each.end_ns - each.begin_ns for each in of["stall"]) == sum(int(s.stall_ns.sum()) for s in steps)
    assert sum(each.arguments["stall_ns"] for each in of["wait"]) == said["stall_ns"]
    lasted = [(s.ready_ns - s.issued_ns)[s.receiver].sum() for s in steps]
    assert sum(each.end_ns - each.begin_ns for each in of["broadcast"]) == sum(lasted)
    assert sum(each.arguments.get("transfer_ns", 0) for each in of["broadcast"]) == sum(
        int(s.transfer_ns.sum()) for s in steps
    )


def test_perfetto_has_a_track_per_rank_and_flows_from_send_to_wait(recording: Path, tmp_path: Path) -> None:
    """Each rank has its tracks, and each flow leads forward in time from a send via a broadcast to the wait for it."""
    path = tmp_path / "run.pftrace"
    swtrace("export", recording, "-f", "perfetto", "-o", path)
    slices = read(path)
    assert {each.track[0].split(" (")[0] for each in slices} == {"rank 0", "rank 1", "rank 2"}
    assert {each.track[1] for each in slices} == {"self_attn.o_proj"}
    assert {"steps", "waits", "sends", "window 0", "window 1"} <= {each.track[2] for each in slices}
    sends = {flow: each for each in slices if each.category == "send" for flow in each.flows_out}
    waits = {flow: each for each in slices if each.category == "wait" for flow in each.flows_in}
    broadcasts = [each for each in slices if each.category == "broadcast"]
    assert len(broadcasts) == len(waits) > 0
    for each in broadcasts:
        (to_wait,), (from_send,) = each.flows_out, each.flows_in
        assert each.name == waits[to_wait].name == sends[from_send].name
        assert each.track[0] == waits[to_wait].track[0] != sends[from_send].track[0]
        assert each.arguments["step"] == waits[to_wait].arguments["step"] == sends[from_send].arguments["step"]
        assert each.begin_ns <= waits[to_wait].end_ns


@pytest.mark.parametrize("table", ["waits", "steps"])
def test_tables_hold_every_row_and_the_ledgers_sums(
    recording: Path, session: Session, tmp_path: Path, table: str
) -> None:
    """CSV and Parquet have the same rows, and their columns sum up to the ledger's facts."""
    as_csv, as_parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    swtrace("export", recording, "-f", "csv", "-o", as_csv, "--table", table)
    done = swtrace("export", recording, "-f", "parquet", "-o", as_parquet, "--table", table, "--json")
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
        swtrace("export", path, "-f", form, "-o", tmp_path / form, "--table", table)
    assert (tmp_path / "csv").read_text() == ",".join(full) + "\n"
    assert parquet.read_table(tmp_path / "parquet").schema.equals(full.to_arrow().schema)


def test_spans_reach_a_collector_after_the_fact(recording: Path, session: Session) -> None:
    """Every span of every step arrives, with the ledger's stall."""
    receiver = SpanReceiver()
    try:
        said = json.loads(swtrace("export", recording, "-f", "otlp", "--endpoint", receiver.endpoint, "--json").stdout)
        spans = receiver.wait_for(said["spans"])
    finally:
        receiver.close()
    steps = list(session.steps())
    assert len(spans) == said["spans"] == sum(span_count(step) for step in steps)
    assert len({span.span_id for span in spans}) == len(spans)
    stall = sum(int(str(span.attributes["swtrace.stall_ns"])) for span in spans if span.name == "swtrace.wait")
    assert stall == sum(int(step.stall_ns.sum()) for step in steps)


def test_a_collector_that_is_not_there_is_one_line(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collector the export fails in one line with the reason, whatever OpenTelemetry logs."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    done = swtrace("export", recording, "-f", "otlp", "--endpoint", "http://127.0.0.1:1", code=1)
    sentence = r"swtrace: the collector did not accept the spans; 0 were delivered before \(.+\)\n"
    assert re.fullmatch(sentence, done.stderr), done.stderr


def test_output_is_asked_for(recording: Path) -> None:
    """A format that writes a file needs a file name."""
    assert "needs --output" in swtrace("export", recording, "-f", "csv", code=2).stderr


@pytest.mark.parametrize("command", [("export", "-f", "csv"), ("report",)], ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["run.swrec", "link.swrec", "hard.swrec", "folder/../run.swrec"])
def test_an_output_that_is_the_recording_is_refused(
    recording: Path, tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    """No command overwrites its own input, whatever name it is given by."""
    file = tmp_path / "run.swrec"
    file.write_bytes(recording.read_bytes())
    (tmp_path / "link.swrec").symlink_to(file)
    (tmp_path / "hard.swrec").hardlink_to(file)
    (tmp_path / "folder").mkdir()
    done = swtrace(*command, file, "-o", tmp_path / name, code=2)
    assert "is an input file" in done.stderr
    assert file.read_bytes() == recording.read_bytes()


@pytest.mark.parametrize("command", [("export", "-f", "csv"), ("report",)], ids=lambda command: command[0])
def test_an_output_is_replaced_when_the_new_one_is_whole(
    recording: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A failed command keeps the existing file; a successful one replaces the target of a link and keeps its mode."""
    real, link, cut = tmp_path / "real", tmp_path / "link", tmp_path / "cut.swrec"
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to(real)
    damaged = bytearray(recording.read_bytes())
    damaged[-300] ^= 1
    cut.write_bytes(damaged)
    swtrace(*command, cut, "-o", link, "--force", code=1)
    assert real.read_text() == "before"
    swtrace(*command, recording, "-o", link, "--force")
    assert real.stat().st_size > 1000
    assert real.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "cut.swrec"}


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


def test_open_gives_arrays_by_selection(session: Session) -> None:
    """`swtrace.open` selects by series, rank, layer, phase and step, and returns NumPy arrays."""
    waits = session.waits(rank=1, layer=2, warmup=1)
    assert waits.rows == STEPS - 2
    assert waits["stall_ns"].dtype == np.int64
    assert set(waits["step"]) == set(range(1, STEPS - 1))
    assert session.stall_seconds(rank=1) == pytest.approx(session.step_table(rank=1)["stall_ns"].sum() * 1e-9)
    assert session.step_table(phase="prefill").rows == 0
    assert session.facts().series[0].steps == STEPS - 1
    assert session.lost == 0
    (verdict,) = session.verdicts().values()
    assert verdict.headline.sentence
    table = waits.to_arrow()
    assert table.num_rows == waits.rows
    for library in ("pandas", "polars"):
        try:
            frame = getattr(waits, f"to_{library}")()
        except SwtraceError as error:
            assert f"pip install {library}" in str(error)  # noqa: PT017 - either is right
        else:
            assert len(frame) == waits.rows


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [
        (range(0, 10, -1), []),
        (range(3, 0, -1), [1, 2, 3]),
        (range(-2, 5, 3), [1, 4]),
        (slice(20, None, 2), [20, 22]),
        (slice(None, np.int64(2)), [0, 1]),
    ],
)
def test_steps_are_those_of_the_range(session: Session, steps: range | slice, numbers: list[int]) -> None:
    """A range selects the numbers in it, even if it is descending; a slice, what it cuts out of the numbers from 0."""
    assert sorted(session.step_table(rank=np.int64(0), steps=steps)["step"].tolist()) == numbers


@pytest.mark.parametrize(
    "selection",
    [
        {"steps": slice(-5, None)},
        {"steps": slice(None, -1)},
        {"steps": slice(None, None, 0)},
        {"steps": slice("a", None)},
        {"steps": 5},
        {"steps": (1, 2)},
        {"warmup": -3},
        {"warmup": "3"},
        {"warmup": None},
        {"rank": True},
        {"rank": -1},
        {"rank": 0.5},
        {"layer": "7"},
        {"phase": 1},
        {"series": ["o_proj"]},
    ],
)
def test_a_selection_that_says_nothing_is_refused(session: Session, selection: dict[str, object]) -> None:
    """An impossible selection is an error that names argument and value, both for numbers and tables."""
    ((name, value),) = selection.items()
    for question in (session.waits, session.step_table, session.stall_ratio, session.spans):
        with pytest.raises(SettingsError, match=re.escape(f"{name}={value!r}: must be ")):
            question(**selection)


def test_open_takes_a_folder_of_rings_too(tmp_path: Path) -> None:
    """A live session reads new records whenever it is queried; a daemon's URL is refused with a hint."""
    run = RecordedRun(tmp_path)
    with public.open(tmp_path) as session:
        run.write(4)
        assert session.step_table(rank=0).rows == 4
        run.write(3)
        assert session.step_table(rank=0).rows == 7
        assert len(session.spans(steps=range(2, 3))) > 0
    run.close()
    with pytest.raises(SettingsError, match="/api/v1"):
        public.open("http://127.0.0.1:9465")


def test_a_perfetto_trace_deflates_well(recording: Path, tmp_path: Path) -> None:
    """Names are interned, so a trace takes less than 100 bytes per event, and less than 25 compressed."""
    path = tmp_path / "run.pftrace"
    swtrace("export", recording, "-f", "perfetto", "-o", path)
    events = sum(2 if each.end_ns > each.begin_ns else 1 for each in read(path))
    assert path.stat().st_size / events < 100
    assert len(gzip.compress(path.read_bytes())) / events < 25


def test_what_has_no_instants_is_exported_as_counts_only(tmp_path: Path) -> None:
    """For a run on a device, tables, trace and report cover the timed steps; the summary and the report count all."""
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_every(5, 20)
    run.close()
    path = tmp_path / "run.swrec"
    record_rings(tmp_path / "rings", path)
    (series,) = json.loads(swtrace("stats", path, "--json", "--warmup", "0").stdout)["summary"]["series"]
    assert [rank["steps"] for rank in series["ranks"]] == [20, 20]
    assert [rank["untimed_steps"]["sampled"] for rank in series["ranks"]] == [16, 16]
    assert [rank["recent_steps"] for rank in series["ranks"]] == [4, 4]
    table = public.open(path).step_table()
    assert sorted(set(table["step"].tolist())) == [0, 5, 10, 15]
    assert set(public.open(path).waits()["clock"]) == {"device"}
    said = json.loads(swtrace("export", path, "-f", "perfetto", "-o", tmp_path / "run.pftrace", "--json").stdout)
    assert said["steps"] == 8
    assert len([each for each in read(tmp_path / "run.pftrace") if each.category == "step"]) == 8
    swtrace("report", path, "-o", tmp_path / "report.html", "--warmup", "0")
    page = re.sub(r"<[^>]*>", "", (tmp_path / "report.html").read_text())
    assert "Covers 4 timed steps. Not covered, in the whole recording: 16 untimed." in page
    assert "16 of 20 steps are untimed" in page
