"""A selection takes the steps it names, and one that makes no sense is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from swtrace.errors import SettingsError
from swtrace.session import Session


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [
        (range(0, 10, -1), []),
        (range(3, 0, -1), [1, 2, 3]),
        (range(-2, 5, 3), [1, 4]),
        (slice(20, None, 2), [20, 22]),
        (slice(None, np.int64(2)), [0, 1]),
    ],
)
def test_steps_are_those_of_the_range(session: Session, steps: range | slice, numbers: list[int]) -> None:
    """A range selects the numbers in it, even if it is descending; a slice, what it cuts out of the numbers from 0."""
    assert sorted(session.step_table(rank=np.int64(0), steps=steps)["step"].tolist()) == numbers


@pytest.mark.parametrize(
    "selection",
    [
        {"steps": slice(-5, None)},
        {"steps": slice(None, -1)},
        {"steps": slice(None, None, 0)},
        {"steps": slice("a", None)},
        {"steps": 5},
        {"steps": (1, 2)},
        {"warmup": -3},
        {"warmup": "3"},
        {"warmup": None},
        {"rank": True},
        {"rank": -1},
        {"rank": 0.5},
        {"layer": "7"},
        {"phase": 1},
        {"series": ["o_proj"]},
    ],
)
def test_a_selection_that_says_nothing_is_refused(session: Session, selection: dict[str, object]) -> None:
    """An impossible selection is an error that names argument and value, both for numbers and tables."""
    ((name, value),) = selection.items()
    for question in (session.waits, session.step_table, session.stall_ratio, session.spans):
        with pytest.raises(SettingsError, match=re.escape(f"{name}={value!r}: must be ")):
            question(**selection)
