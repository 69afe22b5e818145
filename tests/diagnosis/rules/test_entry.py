"""Late entry is a cause of its own."""

from __future__ import annotations

from swtrace.ledger.planning.repair import Part, Repair
from tests.support.verdicts import finding, judged, kinds


def test_a_late_entry_is_distinguished_from_a_slow_rank() -> None:
    """A rank that begins 4 ms later and computes like the others has entry skew and is not a straggler."""
    said = judged(gap=lambda rank, _step: 1_000_000 + 4_000_000 * (rank == 1))

    assert finding(said, "entry_skew").rank == 1
    assert "straggler" not in kinds(said)


def test_a_late_entry_in_some_steps_only_is_named() -> None:
    """Every fourth step, 8 ms later."""
    said = finding(judged(gap=lambda rank, step: 1_000_000 + 8_000_000 * (rank == 1 and step % 4 == 0)), "entry_skew")

    assert said.ranks == (1,)
    assert said.sentence.startswith("Rank 1 enters 21.7 % of the steps late, by 8.00 ms on average: ")
    assert said.repair == Repair(Part.ENTRY, (1,))
    assert said.saving.share > 0.05


def test_a_late_entry_says_since_when() -> None:
    """The step in which it began."""
    said = judged(gap=lambda rank, step: 1_000_000 + 4_000_000 * (rank == 1 and step >= 10), steps=32)

    assert finding(said, "entry_skew").since_step == 10


def test_a_rank_that_enters_late_because_it_ended_late_does_not_pause() -> None:
    """A straggler without a barrier between steps: the imbalance comes from inside the step."""
    said = judged(compute=lambda rank, _step, _position: 1_000_000 + 400_000 * (rank == 2), k=3)

    assert "entry_skew" not in kinds(said)
