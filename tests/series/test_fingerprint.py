"""Digests of what was loaded, and of processed layers."""

from __future__ import annotations

import torch

from swtrace.series.fingerprint import LoadedBytes, digest


def test_digests_depend_on_values_alone() -> None:
    """Not on strides or storage; every bit counts, also of types that NumPy lacks."""
    square = torch.arange(9.0).view(3, 3)
    assert digest(square) == digest(square.t().contiguous().t())
    assert digest(square) != digest(square.t())
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.int8):
        some = torch.ones(5).to(dtype)
        other = some.clone()
        other[3] = 2
        assert digest(some) != digest(other)
    assert digest(torch.empty(0)) == digest(torch.empty(0))


def test_what_was_loaded_does_not_depend_on_the_order() -> None:
    """But on names, values, and into which part of the parameter they went."""
    one, two = torch.ones(4), torch.zeros(4)

    def loaded(*loads: tuple[object, ...]) -> str:
        bytes_ = LoadedBytes()
        for load in loads:
            bytes_.add(*load)  # type: ignore[arg-type]
        return str(bytes_)

    told = loaded(("weight", one, "q"), ("weight", two, "k"))
    assert told == loaded(("weight", two, "k"), ("weight", one, "q"))
    assert told != loaded(("weight", one, "k"), ("weight", two, "q"))
    assert told != loaded(("weight", one, "q"))
    assert loaded() == loaded(("weight", "no tensor")) == ""


def test_state_dicts_count_as_loads() -> None:
    """Of the layer's own tensors only."""
    loaded, other = LoadedBytes(), LoadedBytes()
    state = {"block.weight": torch.ones(3), "block.bias": torch.zeros(3), "norm.weight": torch.ones(1)}
    loaded.add_state(state, "block.", {"weight": None, "bias": None})
    other.add("weight", state["block.weight"])
    other.add("bias", state["block.bias"])
    assert str(loaded) == str(other) != ""
