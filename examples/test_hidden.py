"""Prefetch hides the broadcasts here, so these tests pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulated import LAYERS, forwards

if TYPE_CHECKING:
    from swtrace.testing import Tracing


@pytest.mark.swtrace(min_efficiency=0.9, max_stall_ratio=0.05, series="o_proj", warmup=3)
def test_the_broadcasts_hide_behind_compute(swtrace: Tracing) -> None:
    """1 ms of compute per layer covers a broadcast of 0.4 ms."""
    forwards(swtrace, compute_ms=1.0, transfer_ms=0.4)


def test_the_facts_can_be_asserted_on(swtrace: Tracing) -> None:
    """Without the marker the fixture checks nothing; it provides facts for assertions."""
    forwards(swtrace, compute_ms=1.0, transfer_ms=0.4, steps=20)
    assert swtrace.on_time_rate(warmup=3) == 1.0
    assert swtrace.stall_seconds(layer=4, warmup=3) == 0.0
    waits = swtrace.waits(rank=0, warmup=3)
    received = waits.where(waits["outcome"] == "on_time")
    assert received.rows == 17 * LAYERS // 2
    assert received["slack_ns"].min() > 500_000
    assert {span.name for span in swtrace.spans(steps=range(5, 6))} == {
        "swtrace.step",
        "swtrace.transfer",
        "swtrace.wait",
    }
