"""A few seconds of what ``make soak`` does for as long as it is told to."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.soak import GROWN_BYTES, grown
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
    """Memory that grows from rest to rest is reported. Memory that grows at first only, or for a while, is not."""
    assert grown("memory", [GROWN_BYTES * rest for rest in range(6)], GROWN_BYTES) != ""
    assert grown("memory", [0, *[4 * GROWN_BYTES] * 5], GROWN_BYTES) == ""
    assert grown("memory", [GROWN_BYTES, 1, 5 * GROWN_BYTES, GROWN_BYTES], GROWN_BYTES) == ""
    assert grown("memory", [GROWN_BYTES], GROWN_BYTES) == ""
