"""A few seconds of what ``make soak`` does for as long as it is told to."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.soak import FEWEST, GROWN_BYTES, grown
from tests.support.daemon_command import ROOT, environment
from tests.support.patience import patience


def test_a_busy_daemon_loses_nothing_and_says_nothing_untrue() -> None:
    """Damaged rings, killed writers, scrapers and a full disk at once: every account is exact, every record there."""
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.05", "--scrapers", "10", "--kills", "10"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=patience()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "writers killed: 10, with" in done.stdout


def test_growth_is_reported_and_a_plateau_is_not() -> None:
    """Memory that grows steadily is reported. Memory that grows at first, or returns to what it was, is not."""
    steady = [GROWN_BYTES * check for check in range(4 * FEWEST)]
    plateau = [min(value, steady[FEWEST // 2]) for value in steady]
    assert grown("memory", steady, GROWN_BYTES) != ""
    assert grown("memory", plateau, GROWN_BYTES) == ""
    assert grown("memory", [*plateau, *([1] * FEWEST)], GROWN_BYTES) == ""
    assert grown("memory", steady[: 4 * FEWEST - 4], GROWN_BYTES) == "", "too few checks to say anything"
