"""``swtrace stats``, as a user runs it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from swtrace import units
from swtrace.observing import watch_rings
from swtrace.profile import Profile, Spread, Timing
from swtrace.trace.identity import H2D, Offload, SeriesInfo
from tests.support.commands import assert_one_line, checked, clean_environment, run_swtrace
from tests.support.recorded_run import PullRun, RecordedRun
from tests.support.simulated_recordings import record_rings


def test_a_run_that_has_ended_can_be_recorded_and_summed_up(tmp_path: Path) -> None:
    """`record --until-end` records what the rings still hold, and `stats` reports the same as a live ledger."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings)
    run.write(30)
    run.close()
    said = json.loads(checked("record", "--dir", rings, "-o", path, "--until-end", "--json").stdout)
    assert said["records"] == 2 * run.written
    assert said["reason"] == "every rank has ended"
    document = json.loads(checked("stats", path, "--json", "--warmup", "0").stdout)
    (series,) = document["summary"]["series"]
    with watch_rings(rings) as watch:
        watch.drain()
        watch.drain()
        watch.ledger.flush()
        (facts,) = watch.ledger.facts().series
    assert [rank["stall_ratio"] for rank in series["ranks"]] == [rank.recent.stall_ratio for rank in facts.ranks]
    assert [ring["delivered"] for ring in document["summary"]["rings"]] == [run.written] * 2
    assert "rank" in checked("stats", path).stdout


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Text that looks like markup of the printing library is printed as it is."""
    rings = tmp_path / "z[bold]" / "[" / "]"
    run = RecordedRun(rings)
    run.write(12)
    run.close()
    recording, page = tmp_path / "x[red].swrec", tmp_path / "[/].html"
    assert f"to {recording}" in checked("record", "--dir", rings, "-o", recording, "--until-end").stderr
    page.parent.mkdir(exist_ok=True)
    assert str(page) in checked("report", recording, "-o", page).stderr
    ran = run_swtrace(("run", "--no-daemon", "--", sys.executable, "-V"), clean_environment(rings))
    assert f"rings in {rings}" in ran.stderr


@dataclass
class OffloadedRun(PullRun):
    """Ranks whose layers come from host memory, in 600 us each."""

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it when it makes its ring."""
        offload = Offload(group_size=2, num_in_group=1, buffer_bytes=8192, pinned=True)
        return replace(super().described(rank), name="offload", kind=H2D, transport=H2D, offload=offload)


def profile_of(*bytes_per_second: float, devices: int = 1, family: str = H2D) -> Profile:
    timings = []
    for rate in bytes_per_second:
        spread = Spread.of([1e-3])
        each = Timing(family, family, devices, round(rate * 1e-3), 1, False, 9, spread, spread, None)  # noqa: FBT003
        timings.append(each)
    return Profile("0.1.0", "2026-11-29T08:00:00+00:00", ("gpu-a",), 2, "cpu", "host", 2, 1, tuple(timings))


@pytest.fixture
def offloaded(tmp_path: Path) -> Path:
    """A recording of two ranks, each of which copies 4096 bytes in 600 us, except for one stall per step."""
    run = OffloadedRun(tmp_path / "rings")
    run.write(30)
    run.close()
    record_rings(tmp_path / "rings", tmp_path / "run.swrec")
    return tmp_path / "run.swrec"


@pytest.mark.parametrize(("devices", "tail"), [(1, "."), (4, ", 4 GPUs at once.")])
def test_copies_are_compared_with_the_fastest_that_were_probed(
    offloaded: Path, tmp_path: Path, devices: int, tail: str
) -> None:
    """A line per rank; the limit is that of the size that moves most per second."""
    profile = tmp_path / "profile.json"
    profile_of(4e6, 16e6, 8e6, devices=devices).write(profile)
    document = json.loads(checked("stats", offloaded, "--json", "--profile", profile).stdout)
    assert document["h2d_limit_bytes_per_second"] == 16e6
    assert json.loads(checked("stats", offloaded, "--json").stdout)["h2d_limit_bytes_per_second"] is None
    (series,) = document["summary"]["series"]
    lines = checked("stats", offloaded, "--profile", profile).stdout.splitlines()
    for rank in series["ranks"]:
        reached = rank["bandwidth_bytes_per_second"]
        assert (
            f"Copies of offload reach {units.bandwidth(reached)} on rank {rank['rank']}, {units.ratio(reached / 16e6)} "
            f"of the 15.3 MiB/s that `swtrace probe` measured on gpu-a{tail}"
        ) in lines


def test_a_profile_without_such_copies_is_refused(offloaded: Path, tmp_path: Path) -> None:
    """A probe without a GPU says nothing about a GPU."""
    profile = tmp_path / "profile.json"
    profile_of(4e6, family="pull").write(profile)
    done = run_swtrace(("stats", str(offloaded), "--profile", str(profile)), clean_environment(tmp_path))
    assert_one_line(done, 1, "has no copies from host memory", "swtrace probe")


def test_a_run_without_such_copies_is_not_compared(recording: Path, tmp_path: Path) -> None:
    """Layers that come from other ranks have another limit."""
    profile = tmp_path / "profile.json"
    profile_of(4e6).write(profile)
    said = checked("stats", recording, "--profile", profile).stdout
    assert "--profile was not used" in said
    assert "reach" not in said
