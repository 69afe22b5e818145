"""Late entry is a cause of its own."""

from __future__ import annotations

from tests.support.verdicts import finding, judged, kinds


def test_a_late_entry_is_distinguished_from_a_slow_rank() -> None:
    """A rank that begins 4 ms later and computes like the others has entry skew and is not a straggler."""
    said = judged(gap=lambda rank, _step: 1_000_000 + 4_000_000 * (rank == 1))

    assert finding(said, "entry_skew").rank == 1
    assert "straggler" not in kinds(said)
