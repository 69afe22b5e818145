"""The one ring of a process: however Python ends the process, the ring is marked as closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from swtrace.trace.directory import ring_paths
from swtrace.trace.ring_reader import RingReader
from tests.support.patience import patience

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
