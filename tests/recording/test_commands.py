"""`swtrace record`, `stats` and `diff`, as a user runs them."""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swtrace.observing import watch_rings
from swtrace.recording import Recording
from tests.support.commands import clean_environment, run_swtrace
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record, replayed, schedule

SWTRACE = [sys.executable, "-m", "swtrace"]


def swtrace(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    done = subprocess.run(
        [*SWTRACE, *map(str, arguments)], capture_output=True, text=True, timeout=patience(), check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_run_that_has_ended_can_be_recorded_and_summed_up(tmp_path: Path) -> None:
    """`record --until-end` records what the rings still hold, and `stats` reports the same as a live ledger."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings)
    run.write(30)
    run.close()
    said = json.loads(swtrace("record", "--dir", rings, "-o", path, "--until-end", "--json").stdout)
    assert said["records"] == 2 * run.written
    assert said["reason"] == "every rank has ended"
    document = json.loads(swtrace("stats", path, "--json", "--warmup", "0").stdout)
    (series,) = document["summary"]["series"]
    with watch_rings(rings) as watch:
        watch.drain()
        watch.drain()
        watch.ledger.flush()
        (facts,) = watch.ledger.facts().series
    assert [rank["stall_ratio"] for rank in series["ranks"]] == [rank.recent.stall_ratio for rank in facts.ranks]
    assert [ring["delivered"] for ring in document["summary"]["rings"]] == [run.written] * 2
    assert "rank" in swtrace("stats", path).stdout


def test_records_that_were_overwritten_are_told_at_the_end(tmp_path: Path) -> None:
    """What is missing from a recording is in the last lines of the output, and in that of `--json`."""
    run = RecordedRun(tmp_path / "rings", records=1024)
    run.write(300)
    run.close()
    done = swtrace("record", "--dir", tmp_path / "rings", "-o", tmp_path / "run.swrec", "--until-end", "--json")
    said = json.loads(done.stdout)
    assert said["records"] + said["lost"] == 2 * run.written
    assert said["lost"] >= 2 * (run.written - 1024)
    assert f"Lost {said['lost']} records, overwritten" in done.stderr


@pytest.mark.parametrize("source", [("--dir", "EMPTY"), ("--connect", "127.0.0.1:1")], ids=["no rank", "no daemon"])
def test_a_recording_is_replaced_only_by_another(tmp_path: Path, source: tuple[str, str]) -> None:
    """If nothing can be recorded, `--force` keeps the existing file, and without it no file is left."""
    (tmp_path / "empty").mkdir()
    arguments = [each.replace("EMPTY", str(tmp_path / "empty")) for each in source]
    old, new = tmp_path / "old.swrec", tmp_path / "new.swrec"
    old.write_bytes(b"a recording")
    for path, force in ((old, ["--force"]), (new, [])):
        swtrace("record", *arguments, "-o", path, "--duration", "0.3", *force, code=1)
    assert old.read_bytes() == b"a recording"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "old.swrec"}
    RecordedRun(tmp_path / "rings").write(3)
    swtrace("record", "--dir", tmp_path / "rings", "-o", old, "--duration", "0.3", "--force")
    assert Recording.open(old).records == 2 * 18
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "old.swrec", "rings"}


def test_a_ring_is_not_replaced_by_a_recording(tmp_path: Path) -> None:
    """`--force` replaces only recordings, never the ring of a rank."""
    run = RecordedRun(tmp_path)
    run.write(3)
    ring = run.recorders[0].path
    before = ring.stat().st_ino, ring.read_bytes()
    done = swtrace("record", "--dir", tmp_path, "-o", ring, "--duration", "0", "--force", code=2)
    assert f"{ring} is a ring" in done.stderr
    assert (ring.stat().st_ino, ring.read_bytes()) == before
    run.close()


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Text that looks like markup of the printing library is printed as it is."""
    rings = tmp_path / "z[bold]" / "[" / "]"
    run = RecordedRun(rings)
    run.write(12)
    run.close()
    recording, page = tmp_path / "x[red].swrec", tmp_path / "[/].html"
    assert f"to {recording}" in swtrace("record", "--dir", rings, "-o", recording, "--until-end").stderr
    page.parent.mkdir(exist_ok=True)
    assert str(page) in swtrace("report", recording, "-o", page).stderr
    ran = run_swtrace(("run", "--no-daemon", "--", sys.executable, "-V"), clean_environment(rings))
    assert f"rings in {rings}" in ran.stderr


def test_ctrl_c_ends_a_recording_in_good_order(tmp_path: Path) -> None:
    """Interrupted, the command writes what it has, closes the file, and exits with 0."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings)
    process = subprocess.Popen(
        [*SWTRACE, "record", "--dir", str(rings), "-o", str(path)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 500):
        run.write()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=patience())
    assert process.returncode == 0, said
    assert "Interrupted." in said
    with Recording.open(path) as recording:
        assert recording.missing().finished
        assert recording.records == 2 * run.written
    run.close()


def test_a_recording_has_a_default_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --output the file is in the working directory, named by its time, and by the run that was asked for."""
    monkeypatch.chdir(tmp_path)
    run = RecordedRun(tmp_path / "rings", run_id="run/1")
    run.write(3)
    for extra, pattern in (
        ((), r"swtrace-\d{8}-\d{6}\.swrec"),
        (("--run", "run/1"), r"swtrace-run-1-\d{8}-\d{6}\.swrec"),
    ):
        done = swtrace("record", "--dir", tmp_path / "rings", "--duration", "0", "--json", *extra)
        path = json.loads(done.stdout)["path"]
        assert re.fullmatch(pattern, path)
        assert (tmp_path / path).is_file()
    run.close()


def test_a_size_limit_ends_a_recording(tmp_path: Path) -> None:
    """`--max-size` ends the recording below that size while a backlog is drained, and leaves a complete file."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings, records=1 << 16)
    run.write(6000)
    said = json.loads(swtrace("record", "--dir", rings, "-o", path, "--max-size", "64K", "--json").stdout)
    assert said["reason"] == "size reached"
    assert path.stat().st_size <= 64 << 10
    assert said["records"] + said["left_out"] <= 2 * run.written
    assert said["left_out"] > 0
    with Recording.open(path) as recording:
        assert recording.missing().finished
    run.close()


def test_without_ranks_nothing_is_left_behind(tmp_path: Path) -> None:
    """A recording of an empty folder fails, says so, and leaves no file, so that a retry can succeed."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    for _ in range(2):
        done = swtrace("record", "--dir", rings, "-o", path, "--duration", "0", "--json", code=1)
        assert "time is up, but no rank was seen and nothing was recorded" in done.stderr
        assert done.stdout == ""
        assert not path.exists()
    run = RecordedRun(rings)
    run.write(3)
    swtrace("record", "--dir", rings, "-o", path, "--duration", "0")
    run.close()
    with Recording.open(path) as recording:
        assert recording.records == 2 * run.written


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["stats", "README.md"], 1, "not a swtrace recording"),
        (["stats", "nowhere.swrec"], 1, "No such file"),
        (["record", "-o", "/nowhere/x.swrec"], 1, "No such file"),
        (["record", "-o", "x.swrec", "--keep", "3"], 2, "--keep needs --rotate"),
        (["record", "-o", "x.swrec", "--max-size", "much"], 2, "--max-size='much': must be a size"),
        (["record", "-o", "x.swrec", "--max-size", "1"], 2, "--max-size='1': must be at least 64K"),
        (["record", "-o", "x.swrec", "--rotate", "1"], 2, "--rotate='1': must be at least 64K"),
        (["record", "-o", "x.swrec", "--rotate", ""], 2, "--rotate='': must be a size"),
        (["record", "-o", "x.swrec", "--duration", "-1"], 2, "must be a number of seconds, at least 0"),
        (["record", "-o", "x.swrec", "--duration", "nan"], 2, "must be a number of seconds, at least 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], code: int, message: str) -> None:
    """A user's mistake ends in one line on stderr and an exit status."""
    done = swtrace(*arguments, code=code)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_diff_says_what_got_worse_and_can_fail_for_it(tmp_path: Path) -> None:
    """`diff` prints changes with their p-values; with --check its exit status is 1 if anything got worse."""
    a, b = tmp_path / "a.swrec", tmp_path / "b.swrec"
    record(a, schedule(ranks=2, steps=150))
    record(b, schedule(ranks=2, steps=150, seed=2, occupancy=150_000))
    assert "B is worse" in swtrace("diff", a, b, "--check", code=1).stdout
    assert "B is better" in swtrace("diff", b, a, "--check").stdout
    document = json.loads(swtrace("diff", a, b, "--json").stdout)
    assert document["series"][0]["change"] == "worse"


def test_a_demo_replays_to_the_facts_seen_live(tmp_path: Path) -> None:
    """A recording of a demo on real ranks replays to exactly what a live watch of the demo saw."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    rings.mkdir()
    recorder = subprocess.Popen([*SWTRACE, "record", "--dir", str(rings), "-o", str(path), "--until-end"])
    demo = subprocess.Popen(
        [*SWTRACE, "demo", "--scenario", "stalled", "--steps", "20", "--layers", "12", "--no-daemon"],
        env={**os.environ, "SWTRACE_DIR": str(rings)},
        stdout=subprocess.DEVNULL,
    )
    try:
        with watch_rings(rings) as watch:
            while demo.poll() is None:
                watch.poll()
                time.sleep(0.02)
            assert demo.returncode == 0
            assert recorder.wait(patience()) == 0
            watch.drain()
            watch.ledger.flush()
            live = watch.ledger.facts()
    finally:
        for process in (demo, recorder):
            process.kill()
            process.wait()
    assert sum(rank.totals.steps for rank in live.series[0].ranks) == 40
    again = replayed(path).facts
    assert again.series == live.series
    by_rank = operator.attrgetter("identity.rank")
    assert sorted(again.ranks, key=by_rank) == sorted(live.ranks, key=by_rank)


def test_rings_that_cannot_be_read_are_named_and_nothing_recorded_is_a_failure(tmp_path: Path) -> None:
    """`record` over a folder with unreadable rings names them with the reason, and does not end as if it were empty."""
    rings = tmp_path / "rings"
    run = RecordedRun(rings)
    run.write(3)
    run.close()
    for recorder in run.recorders:
        os.truncate(recorder.path, 4096)
    done = swtrace("record", "--dir", rings, "-o", tmp_path / "x.swrec", "--duration", "0.5", code=1)
    for recorder in run.recorders:
        assert recorder.path.name in done.stderr
    assert "nothing was recorded" in done.stderr
    assert "No rank wrote" not in done.stderr
