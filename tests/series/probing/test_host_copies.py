"""Copies from host memory, timed on the simulated device: every time is arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swtrace.profile import Timing
from swtrace.series.probing import host_copies
from swtrace.series.probing.host_copies import WARM_UP, Copied, HostCopies, time_copies
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock

KIB = 1 << 10
FIXED_NS, NS_PER_KIB = 5_000_000, 20_000
"""Of a copy: longer than the host needs to enqueue the next one, so that it is never late."""
CALL_NS = 1_000
BUSY_NS = 100_000_000


class Copier:
    """Copies as work of the simulated device."""

    def __init__(self) -> None:
        self.device = SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=CALL_NS)
        self.source = (torch.arange(256 * KIB) % 251).to(torch.uint8)
        self.target = torch.zeros(64 * KIB, dtype=torch.uint8)
        self.broken = ""
        self.copies = HostCopies(self.device, self.source, self.target, self.copy)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy, or fail."""
        if self.broken:
            raise RuntimeError(self.broken)
        self.device.compute(FIXED_NS + source.nbytes // KIB * NS_PER_KIB, at_end=lambda _ns: target.copy_(source))


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Copier:
    """Return a device that makes few copies of each size. The host sleeps in virtual time."""
    copier = Copier()
    monkeypatch.setattr(host_copies, "_BYTES", 64 * 8 * KIB)
    monkeypatch.setattr(host_copies, "sleep", lambda seconds: copier.device.host.advance(round(seconds * 1e9)))
    return copier


def test_each_copy_takes_what_arithmetic_says(copier: Copier) -> None:
    """Copies run one after another, so each takes its own time to the nanosecond; the call takes what the host pays."""
    for nbytes, count in ((4 * KIB, 128), (64 * KIB, 8)):
        found = copier.copies.time(nbytes)
        assert isinstance(found, Copied)
        took = (FIXED_NS + nbytes // KIB * NS_PER_KIB) * 1e-9
        assert found.seconds == pytest.approx([took] * count, rel=1e-12)
        assert found.calls == pytest.approx([CALL_NS * 1e-9] * count)


def test_copies_do_not_wait_for_other_streams(copier: Copier) -> None:
    """They are on a stream of their own: work on the current stream neither delays nor lengthens them."""
    copier.device.compute(BUSY_NS)
    began_ns = copier.device.host.now_ns
    found = copier.copies.time(64 * KIB)
    assert isinstance(found, Copied)
    each_ns = FIXED_NS + 64 * NS_PER_KIB
    assert found.seconds == pytest.approx([each_ns * 1e-9] * 8, rel=1e-12)
    assert copier.device.host.now_ns - began_ns < (8 + WARM_UP) * each_ns + BUSY_NS // 100


def test_the_bytes_come_from_all_of_the_source_in_turn(copier: Copier) -> None:
    """Copy number n reads slot n modulo the number of slots, and its bytes arrive."""
    copier.copies.time(64 * KIB)
    copier.device.synchronise()
    last = (8 + WARM_UP - 1) % 4
    assert torch.equal(copier.target, copier.source[last * 64 * KIB : (last + 1) * 64 * KIB])


def test_a_device_that_fails_gives_its_reason_and_no_times(copier: Copier) -> None:
    """A rank whose copies fail says why in one line; the other ranks go on."""
    copier.broken = "out of memory\nCompile with TORCH_USE_CUDA_DSA"
    assert copier.copies.time(4 * KIB) == "simulated:0: out of memory"


def test_a_copy_that_does_not_end_is_given_up(copier: Copier) -> None:
    """A device that hangs does not hang the probe."""
    copier.copies._stream.hang()  # type: ignore[attr-defined]
    assert copier.copies.time(4 * KIB) == "simulated:0: copies of 4096 bytes are not done after 60 s"


def timed(copies: HostCopies | str | None, sizes: tuple[int, ...], *others: Any) -> list[Timing | str]:
    """Return what a probe yields on a rank whose peers always pass ``others``."""
    return list(time_copies(copies, sizes, lambda item: [item, *others]))


def test_a_profile_has_one_timing_of_each_size_over_all_ranks_with_a_device(copier: Copier) -> None:
    """Bytes, samples and the bandwidth are those of the copies; a rank without a device does not count."""
    small, large = timed(copier.copies, (4 * KIB, 64 * KIB), None)
    assert isinstance(small, Timing)
    assert isinstance(large, Timing)
    assert [(each.transport, each.family) for each in (small, large)] == [("h2d", "h2d")] * 2
    assert [(each.ranks, each.bytes, each.concurrent, each.computing) for each in (small, large)] == [
        (1, 4 * KIB, 1, False),
        (1, 64 * KIB, 1, False),
    ]
    assert (small.samples, large.samples) == (128, 8)
    assert large.bytes_per_second == pytest.approx(64 * KIB / 6.28e-3)


def test_copies_of_all_ranks_count(copier: Copier) -> None:
    """Two ranks with a device give one timing, with the times of both."""
    other = Copied([1.0] * 8, [1e-6] * 8)
    (found,) = timed(copier.copies, (64 * KIB,), other)
    assert isinstance(found, Timing)
    assert (found.ranks, found.samples) == (2, 16)
    assert found.seconds.mean == pytest.approx((1.0 + 6.28e-3) / 2)


def test_without_a_device_one_sentence_says_so() -> None:
    """Nothing is timed, and nothing is asked of the other ranks a second time."""
    assert timed(None, (4 * KIB,), None) == ["torch sees no GPU for any rank"]
    assert timed("cuda:0: no timed events", (4 * KIB,), None) == ["rank 0, cuda:0: no timed events"]


def test_a_rank_without_an_accelerator_has_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where torch has none, nor where there are fewer than ranks."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert HostCopies.of_rank(KIB) is None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert HostCopies.of_rank(KIB) is None


def test_an_accelerator_that_cannot_be_used_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first line, with the device that has the rank's index."""

    def fails(index: int) -> None:
        raise RuntimeError(f"device {index} is busy\nmore")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", fails)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert HostCopies.of_rank(KIB) == "cuda:1: device 1 is busy"
