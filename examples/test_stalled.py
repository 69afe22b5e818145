"""Prefetch cannot hide the broadcasts here, so this test must fail. To see it fail, pass ``--runxfail`` to pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulated import forwards

if TYPE_CHECKING:
    from swtrace.testing import Tracing


@pytest.mark.xfail(strict=True, reason="the channel is slower than the compute")
@pytest.mark.swtrace(min_efficiency=0.9, max_stall_ratio=0.05, series="o_proj", warmup=3)
def test_the_broadcasts_take_longer_than_the_compute(swtrace: Tracing) -> None:
    """0.5 ms of compute per layer cannot cover a broadcast of 0.8 ms, whatever the prefetch step."""
    forwards(swtrace, compute_ms=0.5, transfer_ms=0.8)
