"""The facts of a step: computed on access or given as values."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.recent import sums_of
from tests.support import feeding
from tests.support.random_steps import random_schedule, same_step


def test_a_step_made_of_values_is_as_good_as_one_that_computes_them() -> None:
    """Facts that are read in any order equal those of a step constructed from them, and so do their sums."""
    ledger = feeding.ledger(random_schedule())
    feeding.feed(ledger, random_schedule())
    for step in ledger.take_steps():
        backwards = {field.name: getattr(step, field.name) for field in reversed(fields(step))}
        made = StepFacts(**backwards)
        assert same_step(made, step)
        assert np.array_equal(sums_of(made), sums_of(step))
        assert np.array_equal(made.duration_ns, step.duration_ns)
        assert (made.whole == step.whole).all()
        later = replace(step, end_ns=step.end_ns + 5)
        assert (later.duration_ns == step.duration_ns + 5).all()
        assert later.path is step.path


def test_a_step_has_no_other_attributes() -> None:
    """A misspelt name is an error, not a column."""
    ledger = feeding.ledger(random_schedule())
    feeding.feed(ledger, random_schedule())
    with pytest.raises(AttributeError, match="stal_ns"):
        _ = ledger.take_steps()[0].stal_ns  # type: ignore[attr-defined]
