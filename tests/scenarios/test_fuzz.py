"""Damaged rings, folders, recordings and requests: a few of the cases that ``make fuzz`` runs by the million."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fuzz
from tests.support.daemon_command import ROOT, environment
from tests.support.patience import patience


def test_damaged_input_is_read_or_refused_and_never_anything_else() -> None:
    """Of 600 cases none fails, and of every kind some are read and some are refused."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", "600"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=patience()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split()[0]: line.split()[1::2] for line in done.stdout.splitlines() if "refused" in line}
    assert set(counts) == set(fuzz.SHARES)
    for kind in ("ring", "recording"):
        read, refused, failed = map(int, counts[kind])
        assert (read > 0, refused > 0, failed) == (True, True, 0), done.stdout


def test_a_reader_that_raises_another_error_is_a_failure_that_names_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An undocumented exception is counted as failed, and the command that repeats it finds it again."""
    bench = fuzz.Bench(tmp_path)

    def broken(path: Path) -> None:
        raise KeyError(path.name)

    monkeypatch.setattr(fuzz, "read_in_every_way", broken)
    tally = fuzz.Tally()
    fuzz.run(bench, 7, range(3), tally, {"ring": 1})
    assert tally.outcomes == {("ring", "failed"): 3}
    assert "KeyError: 'ring-fuzz-0-00000000.swt'" in tally.failures[2]
    assert tally.failures[2].endswith("A ring; repeat: python -m benchmarks.fuzz --seed 7 --only 2 --kind ring")
