"""Which layers are shared, as users write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtrace.share import Share, runs


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", range(3, 15)),
        ("none", ()),
        ("1/2", range(3, 15, 2)),
        ("1/4", range(3, 15, 4)),
        ("layers:0-40:2,5", (4, 5, 6, 8, 10, 12, 14)),
        (" Layers: 7 ", (7,)),
    ],
)
def test_a_share_names_layers(text: str, layers: tuple[int, ...]) -> None:
    """Every form gives its layers among those of a pipeline stage."""
    assert Share.parse(text).layers(3, 15) == tuple(layers)


def test_half_of_an_odd_number_is_every_second_layer() -> None:
    """31 of 61 layers are those with even numbers."""
    assert Share.parse("1/2").layers(0, 61) == tuple(range(0, 61, 2))


@given(st.integers(1, 40), st.integers(2, 40), st.integers(0, 9), st.integers(1, 200))
def test_a_fraction_is_spaced_evenly(numerator: int, denominator: int, start: int, total: int) -> None:
    """The gaps between shared layers differ by one layer at most, also from the last one to the next step's first."""
    if numerator >= denominator:
        return
    layers = Share.parse(f"{numerator}/{denominator}").layers(start, start + total)

    assert abs(len(layers) - total * numerator / denominator) <= 0.5
    gaps = [
        after - before
        for before, after in zip(layers, (*layers[1:], *(layer + total for layer in layers[:1])), strict=True)
    ]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert all(start <= layer < start + total for layer in layers)


def test_listed_layers_beyond_the_model_are_told() -> None:
    """Of a list for a larger model, what this one lacks; at once, however many these are."""
    share = Share.parse("layers:0-60:2,3,70,5-999999999")
    assert share.beyond(61) == "70,61-999999999"
    assert share.beyond(60) == "60,70,60-999999999"
    assert share.layers(0, 6) == (0, 2, 3, 4, 5)
    assert Share.parse("layers:1-40:3").beyond(41) == Share.parse("1/2").beyond(2) == ""


@given(st.sets(st.integers(0, 60), min_size=1))
def test_listed_layers_are_read_back(layers: set[int]) -> None:
    """The text made of layers names the same layers."""
    ascending = tuple(sorted(layers))

    assert Share.parse(str(Share.of_layers(ascending))).layers(0, 61) == ascending


def test_runs_are_short() -> None:
    """Layers at equal distances are written as one run."""
    assert runs((*range(0, 42, 2), 43)) == "0-40:2,43"
    assert runs((1, 2, 3, 4, 9)) == "1-4,9"


@pytest.mark.parametrize(
    "text",
    ["", "half", "0/2", "2/2", "3/2", "1/0", "1/2/3", "-1/2", "layers:", "layers:5-3", "layers:1-5:0", "layers:²"],
)
def test_other_texts_are_refused(text: str) -> None:
    """Anything else raises an error that the setting words."""
    with pytest.raises(ValueError, match=f"^{re.escape(text.removeprefix('layers:'))}$"):
        Share.parse(text)
