"""A daemon whose rings are damaged in every way, at random, while healthy ranks go on.

``SWTRACE_STORM_S`` is how long the storm lasts, ``SWTRACE_STORM_SEED`` repeats one. ``make soak`` has a longer one.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.support.daemon_command import daemon
from tests.support.recorded_run import RecordedRun
from tests.support.storm import Storm, check
from tests.support.writer_process import Writers

DEFAULT_S = 4.0


def test_healthy_ranks_lose_nothing_while_rings_beside_them_come_to_harm(tmp_path: Path) -> None:
    """However rings are removed, replaced or damaged, healthy ranks are read completely, and no old figure is shown."""
    seed = int(os.environ.get("SWTRACE_STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SWTRACE_STORM_SEED={seed}")  # noqa: T201 (shown where the test fails)
    run = RecordedRun(tmp_path / "rings", run_id="healthy", records=1 << 14)
    checks = 0
    with Writers() as writers, daemon(run.directory) as watching:
        run.write(1)
        until_s = time.monotonic() + float(os.environ.get("SWTRACE_STORM_S") or DEFAULT_S)
        storm = Storm(run, writers, random.Random(seed))  # noqa: S311 - a storm that can be repeated
        while time.monotonic() < until_s or not checks:
            for _ in range(storm.chance.randrange(1, 6)):
                storm.step()
                run.write(storm.chance.randrange(1, 4))
            check(storm, watching)
            checks += 1
        said = watching.end()
    run.close()
    print(checks, "checks,", run.written, "records per healthy rank,", dict(storm.done))  # noqa: T201 (likewise)
    print(said)  # noqa: T201 (likewise)
    assert storm.done
    assert "Traceback" not in said
