"""The computation of a demo rank: layers of the size asked for, whose outputs show every wrong bit."""

from __future__ import annotations

import pytest

from swtrace.cli.demo.model import build, expect
from swtrace.cli.demo.scenarios import Dials


@pytest.mark.parametrize("mib", [0.002, 0.125, 1, 3])
def test_a_layer_has_the_size_asked_for(mib: float) -> None:
    """One layer's weight has the dial's MiB, to a row."""
    weight = build(Dials(mib=mib), 0).weight
    assert abs(weight.numel() * 4 - mib * (1 << 20)) <= 512 * 4


def test_one_wrong_element_changes_the_output() -> None:
    """No element of a weight can be wrong by a bit without the check noticing."""
    import torch

    dials = Dials(layers=2, mib=0.002)
    check = expect(dials)
    weight = build(dials, 0).weight
    assert torch.equal(weight @ check.inputs[0], check.outputs[0][0])
    noticed = 0
    for column in range(weight.shape[1]):
        wrong = weight.clone()
        wrong[0, column] += 1
        noticed += any(
            not torch.equal(wrong @ given, outputs[0])
            for given, outputs in zip(check.inputs, check.outputs, strict=True)
        )
    assert noticed == weight.shape[1]
