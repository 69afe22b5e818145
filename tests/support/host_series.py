"""A series over several hosts, their daemons, and what the first host shows of all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swtrace.ledger.facts import Nanoseconds, SeriesFacts, StepFacts
from swtrace.session import RecordingSession
from tests.support.hosts import Delay, Host, daemons, hosts, watching_daemon
from tests.support.patience import patience
from tests.support.ranks import run_ranks

LAYERS = 12
COLUMNS = 512
"""A layer of 512 x 512 float32 is 1 MiB."""


@dataclass(frozen=True)
class HostSeries:
    """A series with one rank on each host, as the first host shows it."""

    hosts: Sequence[Host]
    series: SeriesFacts
    steps: Sequence[StepFacts]
    screen: Mapping[str, Any]
    """The series in what ``swtrace top --once --json`` prints."""

    @property
    def true_shift_ns(self) -> Nanoseconds:
        """``[rank]``: what must be added to a rank's instants to show them on the first rank's clock, exactly."""
        return np.array([self.hosts[0].ahead_ns - host.ahead_ns for host in self.hosts], np.int64)

    @property
    def compared(self) -> list[StepFacts]:
        """Return the steps in which all ranks are compared. The first ones may lack ranks that were found later."""
        return [step for step in self.steps if step.complete and step.comparable]

    def error_ns(self, step: StepFacts) -> Nanoseconds:
        """Return by how much each rank's instants are misplaced, ``[rank]``."""
        return np.asarray(step.clock_shift_ns - self.true_shift_ns, np.int64)


def run(
    folder: Path,
    ahead_s: Sequence[int],
    *,
    steps: int,
    compute_s: float = 0.0005,
    late_s: Mapping[int, float] | None = None,
    delays: Mapping[int, Delay] | None = None,
    watching: bool = False,
) -> HostSeries:
    """Run a series with one rank on each host, beside a daemon on each, and read all of them on the first host.

    Args:
        folder: Where the rings and the recording are.
        ahead_s: By host: how far its clock is ahead of this machine's.
        steps: Number of steps.
        compute_s: Compute of each layer.
        late_s: By rank: how long it sleeps before it issues each broadcast.
        delays: By host: delay of its link.
        watching: Whether the first host reads them through a daemon that watches all of them.
    """
    with ExitStack() as stack:
        made = stack.enter_context(hosts(folder, ahead_s, delays))
        served = stack.enter_context(daemons(made))
        if watching:
            served = [stack.enter_context(watching_daemon(made[0], served))]
        connect = ",".join(served)
        recording = folder / "run.swrec"
        recorder = stack.enter_context(
            subprocess.Popen(
                made[0].command(
                    *(sys.executable, "-m", "swtrace", "record"),
                    *("--connect", connect, "--until-end", "--output", recording),
                ),
                env=made[0].environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(recorder.kill)
        run_ranks(
            *(len(made), run_rank, steps, compute_s, late_s or {}),
            environment={"SWTRACE_RUN_ID": "several-hosts"},
            hosts=made,
        )
        _, said = recorder.communicate(timeout=patience())
        assert recorder.returncode == 0, said
        shown = ("top", "--once", "--json", "--wait", str(round(patience())), "--connect", connect)
        printed = made[0].run(sys.executable, "-m", "swtrace", *shown)
    (screen,) = json.loads(printed)["summary"]["series"]
    with RecordingSession(recording) as session:
        finished = tuple(session.steps())
        (series,) = session.facts().series
    return HostSeries(made, series, finished, screen)


def run_rank(rank: int, steps: int, compute_s: float, late_s: Mapping[int, float]) -> None:
    """Run one rank of the series."""
    from torch import nn

    from swtrace.series import RankGroup, Series
    from swtrace.series.recording import process_recorder

    series = Series("o_proj", RankGroup.world(), 0, LAYERS, prefetch_step=1, recorder=process_recorder, time_every=1)
    for index in range(LAYERS):
        series.register(index, nn.Linear(COLUMNS, COLUMNS, bias=False))
    series.post_process()
    for _ in range(steps):
        with series.step(tokens=1, requests=1):
            for index in range(LAYERS):
                time.sleep(late_s.get(rank, 0.0))
                series.reach(index)
                time.sleep(compute_s)
                series.wait(index)
    series.close()
