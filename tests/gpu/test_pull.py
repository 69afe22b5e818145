"""Two processes on one GPU that pull from each other's memory by CUDA IPC: the simulated device's scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from swtrace.series import RankGroup, Series
from swtrace.settings import Settings
from tests.support.device.claims import LAYERS, MS, STEPS, US
from tests.support.device.pulling import (
    ANNOUNCED,
    HOW,
    OWNER,
    OWNER_ENDED,
    RANKS,
    READER,
    await_said,
    bereaved,
    kill,
    mixed,
    say,
    steps_on,
    timed,
)
from tests.support.patience import patience
from tests.support.replicas import replica, run_replicas
from tests.support.stacks import ForwardDiedError, Stack, plain_linear, true_weights

CUDA = "cuda"
SHAPES = [
    (num_layers, start, k, windows)
    for windows in ("static", "rolling")
    for num_layers, start, k in ((2, 0, 0), (5, 2, 3), (8, 1, 2))
]
COUNTERS_BYTES = 1 << 17
"""More than torch's file of reference counters has."""


def computes(rank: int, folder: str, device: str) -> list[bool]:
    """Run forwards of series that choose their transport themselves, more on rank 1; some break off."""

    def linear(position: int) -> nn.Module:
        return plain_linear(position).to(device)

    equal = []
    for number, (num_layers, start, k, windows) in enumerate(SHAPES):
        settings = Settings(
            directory=Path(folder), run_id=f"run {number}", timeout_s=patience(), experimental=True, transport="pull"
        )
        series = Series(
            "s",
            RankGroup(RANKS, rank),
            start,
            start + num_layers,
            prefetch_step=k,
            windows=windows,
            check=True,
            settings=settings,
        )
        stack = Stack(series, start, [weight.to(device) for weight in true_weights(num_layers)], linear)
        series.post_process()
        right = series.info.clock == ("host" if device == "cpu" else "device")
        for step in range(6 + 5 * rank):
            try:
                with series.step():
                    right &= stack.forward(step, stop_at=(step + rank) % num_layers if step % 4 == 3 else None)
            except ForwardDiedError:
                pass
        equal.append(right)
        say(Path(folder), f"finished {number} {rank}")
        for other in RANKS:
            await_said(Path(folder), f"finished {number} {other}")
        series.close()
    return equal


def test_outputs_equal_resident_weights_bit_by_bit(tmp_path: Path, device: torch.device) -> None:
    """Over shapes, policies and forwards that died, with the ownership check; the ranks run different steps."""
    assert run_replicas(2, computes, str(tmp_path), str(device)) == [[True] * len(SHAPES)] * 2
    assert not list(tmp_path.glob("pull-*"))


@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("prefetch_step", [1, 2])
@pytest.mark.parametrize("transfer_ns", [100 * US, 10 * MS])
def test_stall_and_slack_are_the_devices_own(
    tmp_path: Path, device: torch.device, transfer_ns: int, prefetch_step: int, *, replayed: bool
) -> None:
    """Within 5 us or 1 % of what the spinning kernels wrote down, from an owner that runs no step; no read is stale."""
    del device
    _, found = run_replicas(2, timed, CUDA, str(tmp_path), transfer_ns, prefetch_step, replayed)
    assert found is not None
    assert found.waits
    assert [wait for wait in found.waits if not wait.close_enough] == []
    assert found.untimed == 0
    assert found.readings == (2 * STEPS * LAYERS, 0)


@pytest.mark.parametrize("transfer_ns", [0, 200 * US])
@pytest.mark.parametrize(("layers", "prefetch_step"), [(7, 1), (8, 2)])
def test_any_mixture_reads_every_layer_right(
    tmp_path: Path, device: torch.device, layers: int, prefetch_step: int, transfer_ns: int
) -> None:
    """Eager steps, replays of two graphs, captures and forwards that die, in different numbers on the two ranks."""
    del device
    for reads, made, failed in run_replicas(2, mixed, CUDA, str(tmp_path), layers, prefetch_step, transfer_ns, 60):
        assert (made, failed) == (reads, 0)


@pytest.mark.parametrize("how", HOW)
def test_the_death_of_an_owner_ends_the_next_step_before_it_reads(
    tmp_path: Path, device: torch.device, how: str
) -> None:
    """The error names series, layer and owner; nothing is copied from its memory any more."""
    del device
    with (
        replica(OWNER, bereaved, CUDA, str(tmp_path), how) as owner,
        replica(READER, bereaved, CUDA, str(tmp_path), how) as reader,
    ):
        await_said(tmp_path, "serving")
        await_said(tmp_path, f"running {READER}")
        kill(owner.process)
        say(tmp_path, "killed")
        found = reader.result()
    steps = 4 if how == ANNOUNCED else 5  # an announced step counts from the next call on
    assert found == (OWNER_ENDED, 0, steps, (2 * 5 * LAYERS, 0), OWNER_ENDED)


def test_a_reader_in_the_middle_of_its_steps_ends_too(tmp_path: Path, device: torch.device) -> None:
    """It neither hangs nor fails otherwise; what torch leaves of a killed owner is one small file."""
    del device
    with (
        replica(OWNER, steps_on, CUDA, str(tmp_path)) as owner,
        replica(READER, steps_on, CUDA, str(tmp_path)) as reader,
    ):
        await_said(tmp_path, f"running {READER}")
        await_said(tmp_path, f"running {OWNER}")
        kill(owner.process)
        error, (made, failed) = reader.result()
    left = list(Path("/dev/shm").glob(f"torch_{owner.process.pid}_*"))
    assert error == OWNER_ENDED
    # CUDA does not say what a copy reads whose owner dies meanwhile: this does.
    print(f"comparisons: {made}, wrong because the owner died meanwhile: {failed}")  # noqa: T201
    sizes = [path.stat().st_size for path in left]
    for path in left:
        path.unlink()
    assert len(sizes) <= 1
    assert all(size <= COUNTERS_BYTES for size in sizes)
