"""The rank that computes longer is named."""

from __future__ import annotations

import pytest

from tests.support.verdicts import finding, judged


def test_the_rank_that_computes_longer_is_the_straggler() -> None:
    """One rank with 0.4 ms more per layer is named, with the ledger's own excess."""
    said = judged(compute=lambda rank, _step, _position: 1_000_000 + 400_000 * (rank == 2))

    assert finding(said, "straggler").rank == 2
    assert finding(said, "straggler").numbers["excess_ns"] == pytest.approx(12 * 400_000, rel=0.05)
