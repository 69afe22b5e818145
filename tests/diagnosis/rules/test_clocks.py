"""Stall of unknown cause is called that."""

from __future__ import annotations

from tests.support.verdicts import even, finding, judged, kinds


def test_a_stall_of_unknown_cause_is_called_that() -> None:
    """With one rank of three available, the verdict says that causes are unknown instead of naming one."""
    said = judged(ranks=[0], compute=even(300_000), occupancy=900_000)

    assert "only 1 of the group's 3 ranks" in finding(said, "unattributed").sentence
    assert not kinds(said) & {"late_issue", "straggler", "prefetch_step", "channel_bound"}
