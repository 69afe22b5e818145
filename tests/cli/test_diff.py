"""``swtrace diff``: rows add up, the conclusion follows from them, and comparing nothing is not a success."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from swtrace.recording.writer import RecordingWriter
from tests.support.commands import checked
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record, record_rings, schedule


def test_diff_says_what_got_worse_and_can_fail_for_it(tmp_path: Path) -> None:
    """`diff` prints changes with their p-values; with --check its exit status is 1 if anything got worse."""
    a, b = tmp_path / "a.swrec", tmp_path / "b.swrec"
    record(a, schedule(ranks=2, steps=150))
    record(b, schedule(ranks=2, steps=150, seed=2, occupancy=150_000))
    assert "B is worse" in checked("diff", a, b, "--check", code=1).stdout
    assert "B is better" in checked("diff", b, a, "--check").stdout
    document = json.loads(checked("diff", a, b, "--json").stdout)
    assert document["series"][0]["change"] == "worse"


UNITS = {"": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of recordings: ``slow`` has longer transfers than ``a``, ``fast`` less compute."""
    folder = tmp_path_factory.mktemp("recordings")
    made = {
        "a": {"steps": 150},
        "slow": {"steps": 150, "seed": 2, "occupancy": 150_000},
        "fast": {"steps": 150, "seed": 3, "compute": 20, "occupancy": 95_000},
        "short": {"steps": 6, "seed": 4},
    }
    for name, options in made.items():
        record(folder / f"{name}.swrec", schedule(ranks=2, **options))
    with RecordingWriter(folder / "empty.swrec"):
        pass
    return folder


@pytest.mark.parametrize(
    ("a", "b", "arguments", "message"),
    [
        ("a", "slow", ["--series", "nope"], "has no series 'nope': it has o_proj"),
        ("a", "slow", ["--phase", "prefill"], "has no step of phase prefill: it has decode (147)"),
        ("a", "empty", [], "empty.swrec) holds no finished step"),
        ("empty", "a", [], "empty.swrec) holds no finished step"),
        ("a", "slow", ["--warmup", "150"], "--warmup sets how many are skipped"),
        ("a", "short", ["--check"], "too few steps to tell"),
    ],
)
def test_nothing_to_compare_is_an_error(recordings: Path, a: str, b: str, arguments: list[str], message: str) -> None:
    """Without steps to compare, `diff` names what there is and fails. With --check it also fails when in doubt."""
    done = checked("diff", recordings / f"{a}.swrec", recordings / f"{b}.swrec", *arguments, code=1)
    assert message in done.stderr
    assert "step time" not in done.stdout or "--check" in arguments


def test_every_row_adds_up_and_no_value_falls_by_more_than_itself(recordings: Path) -> None:
    """In every row, median A plus shift is median B, the shift is in its interval, and no share is below -100 %."""
    a, b = recordings / "a.swrec", recordings / "fast.swrec"
    (series,) = json.loads(checked("diff", a, b, "--json").stdout)["series"]
    rows: list[dict[str, Any]] = [*series["ranks"], *series["layers"]]
    for row in rows:
        assert row["a_seconds"] + row["shift_seconds"] == pytest.approx(row["b_seconds"])
    for row in series["ranks"]:
        low, high = row["shift_interval_seconds"]
        assert low <= row["shift_seconds"] <= high
    printed = checked("diff", a, b).stdout
    shares = [float(share) for share in re.findall(r"([+-][\d.]+) %", printed)]
    assert shares
    assert min(shares) >= -100
    quantities = "step time|stall|slack|transfer"
    time = r"([+-]?[\d.]+)(?: (us|ms|s))?"
    found = re.findall(rf"(?:{quantities})\s+{time}\s+{time}\s+{time}", printed)
    assert len(found) == 8
    for values in found:
        before, after, shift = (float(values[at]) * UNITS[values[at + 1]] for at in (0, 2, 4))
        assert before + shift == pytest.approx(after, abs=0.006 * (before + after))


def test_a_faster_run_that_stalls_more_is_called_neither_worse_nor_better(recordings: Path) -> None:
    """The last line names step time and stall separately, with the printed signs; --check fails for the stall."""
    done = checked("diff", recordings / "a.swrec", recordings / "fast.swrec", "--check", code=1)
    last = " ".join(done.stdout.strip().splitlines()[-1:])
    assert last.startswith("B is better and worse: step time is lower on 2 ranks")
    assert re.search(r"step time is lower [^;]*\(-[\d.]+ us, -[\d.]+ %\); stall is higher [^;]*\(\+", last)
    assert "stall got worse" in done.stderr
    assert "step time got worse" not in done.stderr


def test_ranks_are_named_with_their_hosts_if_there_are_several(recordings: Path, tmp_path: Path) -> None:
    """Each rank of a run on two hosts has its host, or both if B ran elsewhere; one host is not named."""
    for name, hosts in (("a", ("gpu-a", "gpu-b")), ("b", ("gpu-a", "gpu-c"))):
        run = RecordedRun(tmp_path / name, hosts=hosts)
        run.write(20)
        run.close()
        record_rings(tmp_path / name, tmp_path / f"{name}.swrec")
    printed = checked("diff", tmp_path / "a.swrec", tmp_path / "b.swrec").stdout
    assert set(re.findall(r"^ *\d (\([^)]*\))", printed, re.MULTILINE)) == {"(gpu-a)", "(gpu-b -> gpu-c)"}
    document = json.loads(checked("diff", tmp_path / "a.swrec", tmp_path / "b.swrec", "--json").stdout)
    assert document["series"][0]["hosts"] == {"a": ["gpu-a", "gpu-b"], "b": ["gpu-a", "gpu-c"]}
    one_host = checked("diff", recordings / "a.swrec", recordings / "slow.swrec").stdout
    assert not re.search(r"^ *\d \(", one_host, re.MULTILINE)
