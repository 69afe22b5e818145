"""When a rank dies, its group ends with an error that names it, not with a hang or wrong bytes."""

from __future__ import annotations

import os
import pkgutil
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from swtrace.errors import PeerLostError
from swtrace.series import RankGroup, Series, post_processing, recording
from swtrace.trace.recorder import Recorder
from tests.support.patience import eventually, patience
from tests.support.ranks import ranks, run_ranks
from tests.support.stacks import Stack, true_weights

LAYERS = 6


def run_until_lost(rank: int, folder: str, tracing: str) -> Any:
    """Step forever; return the error that ends this, and whether the next call raises it again at once."""
    series = Series(
        "s", RankGroup.world(), 2, 2 + LAYERS, recorder=recording.process_recorder if tracing == "traced" else None
    )
    stack = Stack(series, 2, true_weights(LAYERS))
    series.post_process()
    deadline = time.monotonic() + 3 * patience()
    try:
        step = 0
        while time.monotonic() < deadline:
            with series.step():
                stack.forward(step)
            step += 1
            if step == 20:
                Path(folder, f"running-{rank}").touch()
    except PeerLostError as error:
        began = time.monotonic()
        with pytest.raises(PeerLostError) as again:
            series.reach(2)
        with pytest.raises(PeerLostError):
            series.begin_step()
        series.close()
        return str(error), str(again.value), time.monotonic() - began
    return "nothing happened"


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_killed_rank_ends_its_group_with_an_error_that_names_it(tmp_path: Path, world_size: int) -> None:
    """After SIGKILL of one rank, every other gets an error within seconds, with series, layer, rank and who died."""
    folder = tmp_path / "state"
    folder.mkdir()
    environment = {"SWTRACE_DIR": str(tmp_path / "rings")}
    with ranks(world_size, run_until_lost, str(folder), "traced", environment=environment) as started:
        deadline = time.monotonic() + patience()
        while len(list(folder.iterdir())) < world_size:
            assert time.monotonic() < deadline, "the ranks did not get going"
            time.sleep(0.01)
        victim = started[-1]
        assert victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        for rank in started[:-1]:
            message, again, _ = rank.result()
            assert message.startswith(f"series 's', rank {rank.number}, layer ")
            assert f"rank {victim.number} died" in message
            assert again == message


def held_elsewhere(rank: int, where: str, folder: str) -> str:
    """Let rank 1 be killed while rank 0 is in another collective; return the error that ends rank 0."""
    series = Series("s", RankGroup.world(), 2, 2 + LAYERS, recorder=recording.process_recorder)
    stack = Stack(series, 2, true_weights(LAYERS))
    series.post_process()
    stack.forward(0)
    total = torch.zeros(1)
    dist.all_reduce(total)
    here = Path(folder, f"running-{rank}")
    try:
        if where == "between steps":
            with series.naming_dead_peers():
                _stay(rank, total, here)
        with series.step():
            for layer in (2, 3, 4):
                series.reach(layer)
                series.wait(layer)
            _stay(rank, total, here)
    except PeerLostError as error:
        with pytest.raises(PeerLostError, match=re.escape(str(error))):
            series.reach(5)
        series.close()
        return str(error)
    return "nothing happened"


def _stay(rank: int, total: torch.Tensor, here: Path) -> None:
    here.touch()
    if rank == 1:
        signal.pause()
    dist.all_reduce(total)


@pytest.mark.parametrize(("where", "layer"), [("amid a step", 4), ("between steps", 7)])
def test_a_death_met_in_another_collective_is_named(tmp_path: Path, where: str, layer: int) -> None:
    """A survivor that was blocked in torch's collective names series, layer, itself, the dead rank and the reason."""
    folder = tmp_path / "state"
    folder.mkdir()
    environment = {"SWTRACE_DIR": str(tmp_path / "rings")}
    with ranks(2, held_elsewhere, where, str(folder), environment=environment) as (survivor, victim):
        eventually(lambda: len(list(folder.iterdir())) == 2, "both ranks to get going")
        assert victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        message = survivor.result()
    assert message.startswith(f"series 's', rank 0, layer {layer}: rank 1 died")
    assert "pair.cc" in message  # gloo's own words


def die(*_: object, **__: object) -> None:
    """Die as if killed at this moment."""
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS: dict[str, tuple[str, str]] = {
    "before post-processing": ("torch.distributed.barrier", "before the first step: rank 1 died; this rank was in"),
    "before it posted that it was there": ("swtrace.series.post_processing.roll_call", "before the first step: rank 1"),
    "before it connected": ("swtrace.series.post_processing.TorchTransport", "before the first step: the ranks could"),
    "before it agreed": ("swtrace.series.post_processing.agree", "before the first step: the ranks could not agree"),
    "before it sent its first layer": ("swtrace.series.placing.Placing.run", "layer "),
    "before it had a ring": ("swtrace.series.recording.process_recorder", "before the first step: the ranks could not"),
    "with a new ring": ("swtrace.series.post_processing.settle_tracing", "before the first step: rank 1"),
    "after post-processing": ("swtrace.series.series.Series._watch", "before the first step: rank 1"),
    "before its first step": ("swtrace.series.circle.Circle.begin_step", "layer "),
    "amid its first step": ("swtrace.series.circle.Circle.wait", "layer "),
    "at the end of a step": ("swtrace.series.circle.Circle._write_step", "layer 7: "),
    "while it closed": ("swtrace.series.circle.Circle.close", "layer 7: rank 1 died"),
    "before its process ended": ("swtrace.series.recording.close", "layer 7: rank 1 died"),
}
"""What the victim calls when it dies, and what the survivor says then."""


def lose_at(rank: int, moment: str, tracing: str, connected: str) -> str:
    """Let rank 1 die at a moment of its life; return the error that ends rank 0.

    A rank may be connected a little before the other one is. So before they agree, it waits until both are: the
    survivor then has a file of the name ``connected``.
    """
    series = Series("s", RankGroup.world(), 2, 2 + LAYERS, recorder=_process_recorder if tracing == "traced" else None)
    stack = Stack(series, 2, true_weights(LAYERS))
    dist.barrier()
    if rank == 1:
        path, _, name = MOMENTS[moment][0].rpartition(".")
        setattr(pkgutil.resolve_name(path), name, die)
    if moment == "before it agreed":
        _when_connected(rank, Path(connected))
    try:
        with series.naming_dead_peers():
            dist.barrier()
            series.post_process()
            for step in range(2):
                dist.barrier()
                with series.step():
                    stack.forward(step)
            dist.barrier()
            series.close()
            dist.barrier()
            recording.close()
            dist.barrier()
    except PeerLostError as error:
        return str(error)
    return "nothing happened"


def _when_connected(rank: int, connected: Path) -> None:
    """Let rank 0 say that it is connected when it begins to agree, and rank 1 wait for that."""
    then: Any = vars(post_processing)["agree"]

    def agree(*arguments: Any, **options: Any) -> Any:
        if rank == 0:
            connected.touch()
        else:
            eventually(connected.exists, "the survivor is connected")
        return then(*arguments, **options)

    vars(post_processing)["agree"] = agree


def _process_recorder(*arguments: Any) -> Recorder:
    return recording.process_recorder(*arguments)


@pytest.mark.parametrize("tracing", ["traced", "untraced"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rank_is_named_whenever_it_dies(tmp_path: Path, moment: str, tracing: str) -> None:
    """From its start on, whichever collective the survivor is in, and whether or not the victim had a ring."""
    if tracing == "untraced" and "ring" in moment:
        pytest.skip("no such moment")
    rings, connected = str(tmp_path / "rings"), str(tmp_path / "connected")
    with ranks(2, lose_at, moment, tracing, connected, environment={"SWTRACE_DIR": rings}) as (survivor, _):
        message = survivor.result()
    assert message.startswith(f"series 's', rank 0, {MOMENTS[moment][1]}")
    assert "rank 1 died" in message


def fail_by_itself(_rank: int) -> list[str]:
    """Raise errors that are unrelated to peers in steps; return the resulting errors."""
    series = Series("s", RankGroup.world(), 2, 2 + LAYERS, recorder=recording.process_recorder)
    Stack(series, 2, true_weights(LAYERS))
    series.post_process()
    came = []
    for given in (RuntimeError("shapes differ"), RuntimeError("Connection closed by peer"), ValueError("gives up")):
        try:
            with series.step():
                series.reach(2)
                raise given
        except (RuntimeError, ValueError) as error:
            came.append(f"{type(error).__name__}: {error}")
    series.close()
    return came


def test_an_error_without_a_death_is_unchanged(tmp_path: Path) -> None:
    """While all peers live, a forward's error is not changed, whatever its text."""
    environment = {"SWTRACE_DIR": str(tmp_path / "rings")}
    expected = ["RuntimeError: shapes differ", "RuntimeError: Connection closed by peer", "ValueError: gives up"]
    assert run_ranks(2, fail_by_itself, environment=environment) == [expected, expected]


def test_an_untraced_series_names_the_source_at_least(tmp_path: Path) -> None:
    """Without rings it is unknown who died, but the layer and its source are known."""
    with ranks(2, run_until_lost, str(tmp_path), "untraced") as started:
        deadline = time.monotonic() + patience()
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline, "the ranks did not get going"
            time.sleep(0.01)
        assert started[1].process.pid is not None
        os.kill(started[1].process.pid, signal.SIGKILL)
        message, _, _ = started[0].result()
    assert message.startswith("series 's', rank 0, layer ")
    assert "its source" in message or "could not be sent" in message


def leave_in_flight(_rank: int) -> int:
    """End with k broadcasts under way, and without closing anything."""
    series = Series("s", RankGroup.world(), 0, LAYERS, prefetch_step=3)
    stack = Stack(series, 0, true_weights(LAYERS))
    series.post_process()
    stack.forward(0)
    return series.statistics().operations


def test_a_process_may_end_with_broadcasts_under_way() -> None:
    """The last k broadcasts are never waited for; ranks that just exit do so cleanly."""
    assert run_ranks(2, leave_in_flight) == [LAYERS, LAYERS]
