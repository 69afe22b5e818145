"""A daemon with more rings than it may open files reads those that it can, and names the others."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import httpx

from swtrace.observing import watch_rings
from swtrace.trace import tail
from swtrace.trace.recorder import Recorder
from tests.support.daemon_command import ROOT, daemon, environment
from tests.support.patience import eventually, patience
from tests.support.recorded_run import identity, series_info


def samples(client: httpx.Client) -> dict[str, float]:
    """Return every sample of a scrape, by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_rings_of_dead_ranks_hold_no_descriptor(tmp_path: Path) -> None:
    """A daemon reads the rings of any number of dead ranks, and keeps showing them."""
    for number in range(200):
        recorder = Recorder.create(tmp_path, identity(f"run-{number}", number), records=64)
        recorder.add_series(series_info(0))
        recorder.close()
    with watch_rings(tmp_path, rescan_s=0) as watch:
        before = len(list(Path("/proc/self/fd").iterdir()))
        watch.drain()
        watch.poll()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        statuses = watch.observe().ranks
        assert len(statuses) == 200
        assert all(status.ring.closed and len(status.ring.windows[0]) == 2 for status in statuses)


def test_rings_beyond_the_limit_of_open_files_are_named_and_the_daemon_answers(tmp_path: Path) -> None:
    """With more living ranks than descriptors, the daemon serves those it can read and names the others, once."""
    limit, ranks = 160, 200
    recorders = [Recorder.create(tmp_path, identity("run-1", rank), records=64) for rank in range(ranks)]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    program = f"{limited}; import runpy; runpy.run_module('swtrace', run_name='__main__')"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > limit
    process = subprocess.Popen(
        [sys.executable, "-c", program, "daemon", "--listen", "127.0.0.1:0", "--dir", str(tmp_path)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=patience()) as client:
            for _ in range(5):
                seen = samples(client)
                up = sum(name.startswith("swtrace_rank_up") for name in seen)
                assert up + seen["swtrace_ring_problems"] == ranks
                assert 0 < up <= limit - tail.SPARE_FILES
            problems = client.get("/api/v1/health").json()["problems"]
            assert all("ulimit -n" in problem["message"] for problem in problems)
            for recorder in recorders[:150]:
                recorder.close()
            eventually(lambda: samples(client)["swtrace_ring_problems"] == 0, "room for all living ranks")
    finally:
        process.terminate()
        _out, said = process.communicate(timeout=patience())
        for recorder in recorders:
            recorder.close()
    assert len(said.splitlines()) < 100, said


def test_a_daemon_raises_its_limit_of_open_files(tmp_path: Path) -> None:
    """The soft limit that a shell gives is raised as far as the hard one allows."""
    with daemon(tmp_path) as running:
        running.client.get("/healthz")
        soft, hard = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, tail.MOST_FILES)
