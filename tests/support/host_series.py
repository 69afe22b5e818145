"""A series over several hosts, its daemons, and the screen of one host that reads all of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.session import RecordingSession
from tests.support.daemon_command import environment
from tests.support.hosts import Delay, Host, daemon, hosts
from tests.support.patience import patience
from tests.support.ranks import run_ranks

LAYERS = 12
COLUMNS = 512
"""A layer of 512 x 512 float32 is 1 MiB."""


@dataclass(frozen=True)
class Run:
    """What the screen of the first host showed of a series with one rank on each host."""

    hosts: Sequence[Host]
    series: SeriesFacts
    steps: Sequence[StepFacts]
    printed: str
    """What ``swtrace top --once`` printed on the first host."""

    def offset_ns(self, rank: int) -> int:
        """Return what must be added to a rank's instants to show them on the clock of the first rank."""
        return self.hosts[0].ahead_ns - self.hosts[rank].ahead_ns


def run(
    folder: Path,
    ahead_s: Sequence[int],
    *,
    steps: int,
    compute_s: float = 0.0005,
    late: Mapping[int, float] | None = None,
    delays: Mapping[int, Delay] | None = None,
) -> Run:
    """Run a series with one rank on each host, beside a daemon on each, and read all of them on the first host.

    Args:
        folder: Where the rings and the recording are.
        ahead_s: By host: how far its clock is ahead of this machine's.
        steps: Number of steps.
        compute_s: Compute of each layer.
        late: By rank: how long it sleeps before it issues each broadcast.
        delays: By host: delay of its link.
    """
    with ExitStack() as stack:
        made = stack.enter_context(hosts(folder, ahead_s, delays))
        connect = ",".join(stack.enter_context(daemon(host)) for host in made)
        recording = folder / "run.swrec"
        arguments = ("record", "--connect", connect, "--until-end", "-o", recording)
        recorder = subprocess.Popen(
            made[0].command(sys.executable, "-m", "swtrace", *arguments),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(recorder.kill)
        run_ranks(
            len(made), step, steps, compute_s, late or {}, hosts=made, environment={"SWTRACE_RUN_ID": "three-hosts"}
        )
        printed, _ = recorder.communicate(timeout=patience())
        assert recorder.returncode == 0, printed
        printed = made[0].run(sys.executable, "-m", "swtrace", "top", "--once", "--connect", connect)
    with RecordingSession(recording) as session:
        finished = tuple(session.steps())
        (series,) = session.facts().series
    return Run(made, series, finished, printed)


def step(rank: int, steps: int, compute_s: float, late: Mapping[int, float]) -> None:
    """Run a rank of the series."""
    import torch
    from torch import nn

    from swtrace.series import RankGroup, Series
    from swtrace.series.recording import process_recorder

    torch.set_grad_enabled(False)
    series = Series("o_proj", RankGroup.world(), 0, LAYERS, prefetch_step=1, recorder=process_recorder, time_every=1)
    for index in range(LAYERS):
        series.register(index, nn.Linear(COLUMNS, COLUMNS, bias=False))
    series.post_process()
    for _ in range(steps):
        with series.step(tokens=1, requests=1):
            for index in range(LAYERS):
                time.sleep(late.get(rank, 0.0))
                series.reach(index)
                time.sleep(compute_s)
                series.wait(index)
    series.close()
