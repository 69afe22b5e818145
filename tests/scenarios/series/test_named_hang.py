"""A rank that hangs on gloo is named while the others still wait, with the chain of those that do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed as dist

from swtrace.diagnosis import Finding, diagnose
from swtrace.observing import Roster, watch_rings
from swtrace.series import RankGroup, Series, recording
from tests.support.patience import eventually, patience
from tests.support.ranks import ranks
from tests.support.stacks import Stack, true_weights

START, LAYERS = 2, 6
FAULT_STEP, FAULT_LAYER = 40, 5
HELD = 1
"""The rank with the fault."""


def program(rank: int, fault: str) -> None:
    """Run steps; in one of them, one rank stops making progress."""
    series = Series("s", RankGroup.world(), START, START + LAYERS, recorder=recording.process_recorder)
    Stack(series, START, true_weights(LAYERS))
    series.post_process()
    step = 0
    while True:
        if (fault, step, rank) == ("absent", FAULT_STEP, HELD):
            signal.pause()
        with series.step():
            for layer in range(START, START + LAYERS):
                series.reach(layer)
                if (step, layer) == (FAULT_STEP, FAULT_LAYER):
                    fail(fault, series, held=rank == HELD)
                series.wait(layer)
        step += 1


def fail(fault: str, series: Series, *, held: bool) -> None:
    """Carry out the fault."""
    if fault == "compute" and held:
        signal.pause()
    elif fault == "stopped" and held:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "collective" and held:
        with series.naming_dead_peers():
            dist.barrier()
    elif fault == "left alone":
        if held:
            signal.pause()
        with series.naming_dead_peers():
            dist.barrier()


@pytest.fixture
def roster(tmp_path: Path) -> Iterator[Roster]:
    """Watch the ranks' rings."""
    with watch_rings(tmp_path) as watched:
        yield watched


def hung(roster: Roster) -> list[Finding]:
    """Return the findings about hung ranks now."""
    roster.drain()
    return [finding for finding in diagnose(roster.observe()).findings if finding.kind == "hung"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("compute", f"Rank 1 hangs in its own compute after layer {FAULT_LAYER} of step {FAULT_STEP}, for "),
        (
            "stopped",
            f"Rank 1 is stopped by a signal or a debugger, after layer {FAULT_LAYER} of step {FAULT_STEP}, for ",
        ),
        ("absent", f"Rank 1 has not begun step {FAULT_STEP}, in which rank "),
        ("collective", f"Rank 1 hangs in a collective outside the series, after layer {FAULT_LAYER} of step "),
        ("left alone", f"Rank 1 hangs in its own compute after layer {FAULT_LAYER} of step {FAULT_STEP}, for "),
    ],
)
def test_a_rank_that_hangs_is_named(fault: str, words: str, tmp_path: Path, roster: Roster) -> None:
    """The finding names the rank, and where it stands; both other ranks are in its evidence."""
    # The ranks themselves would wait for longer than this test does.
    environment = {"SWTRACE_DIR": str(tmp_path), "SWTRACE_TIMEOUT": f"{10 * patience():.0f}"}
    with ranks(3, program, fault, environment=environment):
        found: list[Finding] = []

        def both_wait() -> bool:
            found[:] = hung(roster)
            return any(len(finding.evidence) == 2 for finding in found)

        eventually(both_wait, "a finding that shows who waits", between_s=0.1)
    (finding,) = found
    assert finding.sentence.startswith(words)
    assert finding.ranks == (HELD,)
    assert finding.since_step == FAULT_STEP
    assert finding.since_ns <= time.time_ns()
    assert {sentence[: len("Rank 0")] for sentence in finding.evidence} == {"Rank 0", "Rank 2"}
