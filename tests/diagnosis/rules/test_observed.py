"""What is said about a series that is only observed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from swtrace.diagnosis.case import Case
from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.rules.observed import LayerCompute
from tests.support.observed_stack import LAYERS, observed_stack


def test_the_verdict_says_what_was_observed(tmp_path: Path) -> None:
    """It judges no stall, and says how long steps and layers take."""
    with observed_stack(tmp_path) as stack:
        stack.steps(8)
        headline, *others = verdict(*stack.facts()).findings
    assert headline.kind == "observed"
    assert headline.sentence.startswith("Observed, not shared: 5 layers of s on rank 0. A step takes ")
    assert headline.advice.startswith("`swtrace plan`")
    kinds = {finding.kind for finding in others}
    assert "layer_compute" in kinds
    assert kinds <= {"layer_compute", "untimed", "cores_taken", "steal"}


def test_a_layer_that_stands_out_is_named(tmp_path: Path) -> None:
    """By its index in the model, with how long it and the others take, in the median step."""
    with observed_stack(tmp_path) as stack:
        stack.steps(8)
        facts, steps = stack.facts()
    for step in steps:
        took = np.array([[10, 10, 30, 10]]) * 1_000_000
        reached = np.concatenate((np.zeros((1, 1), np.int64), took.cumsum(axis=1)), axis=1) + 1
        object.__setattr__(step, "issued_ns", reached)
        object.__setattr__(step, "wait_begin_ns", reached + 4_000_000)
    (found,) = LayerCompute().find(Case(facts, steps))
    assert found.sentence == (
        "On rank 0, a layer takes 10.0 ms, of which 4.00 ms pass before its linear begins (medians). Layer 2 takes "
        "longest, 30.0 ms."
    )
    assert reached.shape[1] == LAYERS
    assert found.layer == 2
