"""``swtrace export``: its output is asked for, and no file is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import swtrace as public
from swtrace.trace.schema import Clock
from tests.support.commands import checked
from tests.support.perfetto_reader import read
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings


def test_a_collector_that_is_not_there_is_one_line(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collector the export fails in one line with the reason, whatever OpenTelemetry logs."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    done = checked("export", recording, "-f", "otlp", "--endpoint", "http://127.0.0.1:1", code=1)
    sentence = r"swtrace: the collector did not accept the spans; 0 were delivered before \(.+\)\n"
    assert re.fullmatch(sentence, done.stderr), done.stderr


def test_output_is_asked_for(recording: Path) -> None:
    """A format that writes a file needs a file name."""
    assert "needs --output" in checked("export", recording, "-f", "csv", code=2).stderr


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
    done = checked(*command, file, "-o", tmp_path / name, code=2)
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
    checked(*command, cut, "-o", link, "--force", code=1)
    assert real.read_text() == "before"
    checked(*command, recording, "-o", link, "--force")
    assert real.stat().st_size > 1000
    assert real.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "cut.swrec"}


def test_what_has_no_instants_is_exported_as_counts_only(tmp_path: Path) -> None:
    """For a run on a device, tables, trace and report cover the timed steps; the summary and the report count all."""
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_every(5, 20)
    run.close()
    path = tmp_path / "run.swrec"
    record_rings(tmp_path / "rings", path)
    (series,) = json.loads(checked("stats", path, "--json", "--warmup", "0").stdout)["summary"]["series"]
    assert [rank["steps"] for rank in series["ranks"]] == [20, 20]
    assert [rank["untimed_steps"]["sampled"] for rank in series["ranks"]] == [16, 16]
    assert [rank["recent_steps"] for rank in series["ranks"]] == [4, 4]
    table = public.open(path).step_table()
    assert sorted(set(table["step"].tolist())) == [0, 5, 10, 15]
    assert set(public.open(path).waits()["clock"]) == {"device"}
    said = json.loads(checked("export", path, "-f", "perfetto", "-o", tmp_path / "run.pftrace", "--json").stdout)
    assert said["steps"] == 8
    assert len([each for each in read(tmp_path / "run.pftrace") if each.category == "step"]) == 8
    checked("report", path, "-o", tmp_path / "report.html", "--warmup", "0")
    page = re.sub(r"<[^>]*>", "", (tmp_path / "report.html").read_text())
    assert "Covers 4 timed steps. Not covered, in the whole recording: 16 untimed." in page
    assert "16 of 20 steps are untimed" in page
