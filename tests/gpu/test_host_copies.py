"""Copies of ``swtrace probe`` from host memory to a real GPU."""

from __future__ import annotations

import time

import pytest
import torch

from swtrace.series.probing.host_copies import WARM_UP, Copied, HostCopies

LARGEST = 64 << 20


@pytest.fixture
def copies(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> HostCopies:
    """Return those of this GPU."""
    monkeypatch.setenv("LOCAL_RANK", str(device.index))
    found = HostCopies.of_rank(LARGEST)
    assert isinstance(found, HostCopies), found
    return found


def test_copies_take_as_long_as_the_host_waits_for_them(copies: HostCopies) -> None:
    """Together they take most of the time that passes on the host, and never more."""
    copies.time(LARGEST)
    began = time.monotonic()
    found = copies.time(LARGEST)
    took = time.monotonic() - began
    assert isinstance(found, Copied)
    whole = sum(found.seconds) * (len(found.seconds) + WARM_UP) / len(found.seconds)
    assert took / 2 < whole < took * 1.05


def test_a_copy_of_more_bytes_takes_longer(copies: HostCopies) -> None:
    """64 times the bytes take longer in the fastest copy."""
    small, large = copies.time(LARGEST // 64), copies.time(LARGEST)
    assert isinstance(small, Copied)
    assert isinstance(large, Copied)
    assert min(small.seconds) < min(large.seconds)


def test_the_bytes_arrive(copies: HostCopies) -> None:
    """The target holds what the source holds, and calls return before the copies are done."""
    found = copies.time(LARGEST)
    assert isinstance(found, Copied)
    assert bool((copies._target == 1).all())
    assert sum(found.calls) < sum(found.seconds)
