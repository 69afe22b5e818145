"""Copies that slow each other down are explained."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.verdicts import finding, kinds, pulled


def test_copies_from_one_owner_at_once_explain_a_long_transfer() -> None:
    """Copies that take longer while others read from the same owner are said to; those that do not, are not."""
    chance = random.Random(1)  # noqa: S311 - reproducible
    shape: dict[str, Any] = {
        "steps": (40, 40, 40),
        "compute": lambda *_: chance.randrange(300_000, 600_000),
        "gap": lambda *_: chance.randrange(9_000_000),
    }
    crowded = finding(pulled(**shape, crowding=1.0), "crowded")
    assert crowded.numbers["readers"] == 2
    assert crowded.numbers["fewest_transfer_ns"] == pytest.approx(300_000, rel=0.1)
    assert crowded.numbers["transfer_ns"] > 1.25 * crowded.numbers["fewest_transfer_ns"]
    assert "while 2 ranks read from one owner at once" in crowded.sentence
    assert "crowded" not in kinds(pulled(**shape))
