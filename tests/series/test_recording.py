"""The one ring of a process: made from the given settings, and marked as closed however Python ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from swtrace.series import RankGroup, Series, recording
from swtrace.settings import Settings
from swtrace.trace.directory import ring_paths
from swtrace.trace.header import file_bytes
from swtrace.trace.ring_reader import RingReader
from tests.support.patience import patience
from tests.support.ranks import run_ranks
from tests.support.stacks import Stack, true_weights

ENDS = {
    "by itself": "pass",
    "by sys.exit": "sys.exit(3)",
    "by an error": "raise ValueError",
    "by Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "by SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
    "by SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
}
SCRIPT = """
import os, signal, sys, time
from swtrace.series.recording import process_recorder
signal.signal(signal.SIGINT, signal.default_int_handler)
children = []
for rank, end in enumerate(sys.argv[1:]):
    pid = os.fork()
    if pid == 0:
        process_recorder("run", rank)
        exec(end)
        sys.exit()
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""


def test_every_end_that_python_sees_closes_the_ring(tmp_path: Path) -> None:
    """Only a process that the system ends, as by SIGTERM without a handler, leaves a dead ring."""
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *ENDS.values()],
        env={"SWTRACE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        timeout=patience(),
    )
    left = {}
    for path in ring_paths(tmp_path):
        with RingReader.open(path) as reader:
            left[list(ENDS)[reader.identity.rank]] = (reader.alive(), reader.closed())
    assert left == {end: (False, end not in {"by SIGTERM", "by SIGKILL"}) for end in ENDS}


def traced_as_given(_rank: int, folder: Path) -> None:
    """Make the ring of a series with explicit settings."""
    settings = Settings(directory=folder, run_id="given", ring_records=128, time_every=3)
    series = Series(
        "g", RankGroup.world(), 0, 2, prefetch_step=0, recorder=recording.process_recorder, settings=settings
    )
    Stack(series, 0, true_weights(2))
    os.environ["SWTRACE_DIR"] = str(folder.parent / "later")
    series.post_process()
    series.close()


def test_given_settings_win_over_the_environment(tmp_path: Path) -> None:
    """A series, its ring and its communicator read no variable once the series has its settings."""
    environment = {"SWTRACE_DIR": str(tmp_path / "other"), "SWTRACE_RUN_ID": "other", "SWTRACE_TIMEOUT": "no number"}
    run_ranks(2, traced_as_given, tmp_path / "rings", environment=environment)
    assert [path.name for path in tmp_path.iterdir()] == ["rings"]
    for path in (tmp_path / "rings").iterdir():
        assert path.stat().st_size == file_bytes(128)
        with RingReader.open(path) as reader:
            assert reader.identity.run_id == "given"
