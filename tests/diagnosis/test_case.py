"""The steps that stand for a pull series are those of its most stalled rank."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.verdicts import even, finding, pulled, slow_second


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"compute": slow_second, "steps": (20, 90, 20), "copy": even(500_000)},
        {"compute": lambda rank, *_: 1_000_000 * (1 + rank), "start": (0, 0, 9_000_000)},
        {"compute": even(250_000), "copy": even(400_000), "crowding": 1.0},
    ],
)
def test_no_sentence_about_a_pull_series_compares_ranks(shape: dict[str, Any]) -> None:
    """Nothing speaks of broadcasts, skew, entry or a straggler, whatever the ranks do."""
    said = pulled(**shape)
    text = " ".join(f"{finding.sentence} {finding.advice}" for finding in said.findings).lower()
    assert not [word for word in ("broadcast", "skew", "straggler", "enters", "peer", "issues last") if word in text]


def test_what_is_said_of_a_pull_series_is_about_its_most_stalled_rank() -> None:
    """Transfer, compute and prefetch step are those of the rank that stalls most, which is named."""
    said = pulled(compute=slow_second, steps=(20, 90, 20), copy=even(500_000))
    bound = finding(said, "channel_bound")
    assert (said.headline.rank, bound.rank) == (1, 1)
    assert bound.numbers["compute_ns_per_layer"] == pytest.approx(200_000, rel=0.01)
    assert bound.numbers["transfer_ns_per_layer"] == pytest.approx(500_000 * 2 / 3, rel=0.01)
    assert bound.sentence.startswith("On rank 1, transfer 0.33 ms > compute 0.20 ms per layer")
    worst = finding(said, "worst_layer")
    assert worst.rank == 1
    assert "from rank" in worst.sentence
    assert "source" not in worst.sentence
