"""`swtrace diff`: rows add up, the conclusion follows from them, and comparing nothing is not a success."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from swtrace.recording.difference import Change, Difference, _judged
from swtrace.recording.writer import RecordingWriter
from tests.recording.test_commands import swtrace
from tests.support.simulated_recordings import record, schedule

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
    done = swtrace("diff", recordings / f"{a}.swrec", recordings / f"{b}.swrec", *arguments, code=1)
    assert message in done.stderr
    assert "step time" not in done.stdout or "--check" in arguments


def test_every_row_adds_up_and_no_value_falls_by_more_than_itself(recordings: Path) -> None:
    """In every row, median A plus shift is median B, the shift is in its interval, and no share is below -100 %."""
    a, b = recordings / "a.swrec", recordings / "fast.swrec"
    (series,) = json.loads(swtrace("diff", a, b, "--json").stdout)["series"]
    rows: list[dict[str, Any]] = [*series["ranks"], *series["layers"]]
    for row in rows:
        assert row["a_seconds"] + row["shift_seconds"] == pytest.approx(row["b_seconds"])
    for row in series["ranks"]:
        low, high = row["shift_interval_seconds"]
        assert low <= row["shift_seconds"] <= high
    printed = swtrace("diff", a, b).stdout
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
    done = swtrace("diff", recordings / "a.swrec", recordings / "fast.swrec", "--check", code=1)
    last = " ".join(done.stdout.strip().splitlines()[-1:])
    assert last.startswith("B is better and worse: step time is lower on 2 ranks")
    assert re.search(r"step time is lower [^;]*\(-[\d.]+ us, -[\d.]+ %\); stall is higher [^;]*\(\+", last)
    assert "stall got worse" in done.stderr
    assert "step time got worse" not in done.stderr


def test_stall_that_comes_in_bursts_is_not_called_the_same() -> None:
    """If medians are equal and one run stalls in a fifth of its steps, the means decide and are named as such."""
    bursts = Difference("stall", 0, None, 0.0, 0.0, (0.0, 0.0), 4.05e6, 3.4e4, 0.3, 0.0, Change.UNKNOWN)
    assert _judged(bursts, 1e-5, enough=True).change is Change.BETTER
    assert _judged(bursts, 0.5, enough=True).change is Change.SAME
