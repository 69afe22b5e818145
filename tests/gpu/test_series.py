"""A series on a real GPU, against transfers and computes of known length: the simulated device's scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.device.claims import LAYERS, MS, STEPS, US, long_run, mixture, sampled, timing
from tests.support.device.cuda_rig import CudaRig


@pytest.fixture
def rig(device: torch.device) -> CudaRig:
    """Return the GPU, with spinning kernels."""
    del device
    return CudaRig()


def test_a_wrong_byte_is_seen(rig: CudaRig) -> None:
    """One byte of a weight that is not as expected fails both comparisons of its read, eager and replayed."""
    nbytes = rig.width * rig.width * 4
    right, wrong = (torch.zeros(nbytes, dtype=torch.uint8, device=rig.memory) for _ in range(2))
    wrong[-1] = 1
    rig.read(right, right, 0)
    assert rig.readings() == (2, 0)
    rig.read(wrong, right, 0)
    assert rig.readings() == (4, 2)
    graph = rig.graph()
    with rig.capture(graph):
        rig.read(wrong, right, 0)
    assert rig.readings() == (4, 2)
    rig.replay(graph)
    assert rig.readings() == (6, 4)


@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("prefetch_step", [1, 2])
@pytest.mark.parametrize("transfer_ns", [100 * US, 1 * MS, 10 * MS])
def test_stall_and_slack_are_the_devices_own(
    tmp_path: Path, rig: CudaRig, transfer_ns: int, prefetch_step: int, *, replayed: bool
) -> None:
    """Within 5 us or 1 % of what the spinning kernels themselves wrote down; no read is stale, no step untimed."""
    found = timing(rig, tmp_path, transfer_ns, prefetch_step=prefetch_step, replayed=replayed)
    assert found.waits
    assert [wait for wait in found.waits if not wait.close_enough] == []
    assert found.untimed == 0
    assert found.readings == (2 * STEPS * LAYERS, 0)


def test_a_host_timer_sees_next_to_nothing_of_the_stall(tmp_path: Path, rig: CudaRig) -> None:
    """With transfers of 10 ms against computes of 1 ms, a timer around the waits finds less than a tenth of it."""
    found = timing(rig, tmp_path, 10 * MS)
    assert found.stall_ns > 0
    assert found.naive_ns < found.stall_ns / 10


def test_a_stream_other_than_the_default_is_ordered_as_well(tmp_path: Path, rig: CudaRig) -> None:
    """The forward on a stream of the caller's own: every read right, every wait told."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = timing(rig, tmp_path, 1 * MS)
    assert [wait for wait in found.waits if not wait.close_enough] == []
    assert found.readings == (2 * STEPS * LAYERS, 0)


@pytest.mark.parametrize("transfer_ns", [1 * US, 200 * US])
@pytest.mark.parametrize(("layers", "prefetch_step"), [(7, 1), (8, 2)])
def test_any_mixture_reads_every_layer_right(
    tmp_path: Path, rig: CudaRig, layers: int, prefetch_step: int, transfer_ns: int
) -> None:
    """Eager steps, replays of two graphs, captures and forwards that die, in any order."""
    reads, made, failed = mixture(
        rig, tmp_path, layers=layers, prefetch_step=prefetch_step, transfer_ns=transfer_ns, steps=100
    )
    assert (made, failed) == (reads, 0)


def test_steps_that_are_left_out_are_dated(tmp_path: Path, rig: CudaRig) -> None:
    """One step in three is timed: the others say when they ran, and that is when they were launched and done."""
    timed, outside_ns = sampled(rig, tmp_path)
    assert timed == ([True] * 4 + [False] * 8) * 2
    assert outside_ns < 5 * US


def test_ten_thousand_replays_neither_read_stale_weights_nor_lose_the_clock(tmp_path: Path, rig: CudaRig) -> None:
    """61 layers: every read right, every step's beginning where the host's clock says it must have been, to 5 us."""
    found = long_run(rig, tmp_path, replays=10_000)
    assert (found.comparisons, found.failed) == (2 * 10_000 * 61, 0)
    assert found.timed > 9_000
    assert found.outside_ns < 5 * US
