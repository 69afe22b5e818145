"""Transfers are compared with compute."""

from __future__ import annotations

import pytest

from tests.support.verdicts import even, finding, judged, kinds


def test_a_channel_slower_than_compute_cannot_be_hidden() -> None:
    """Transfer 2.1 ms over compute 0.9 ms: no prefetch step can hide it, and the difference stays exposed."""
    said = judged(compute=even(900_000), occupancy=2_100_000)

    assert said.headline.kind == "stalled"
    bound = finding(said, "channel_bound")
    assert bound.numbers["transfer_ns_per_layer"] == pytest.approx(2_100_000, rel=0.01)
    assert bound.numbers["compute_ns_per_layer"] == pytest.approx(900_000, rel=0.01)
    assert "no prefetch step can hide this. About 14.4 ms per step" in bound.sentence
    assert "prefetch_step" not in kinds(said)
