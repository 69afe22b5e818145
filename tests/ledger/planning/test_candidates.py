"""Which settings are tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swtrace.ledger.planning.candidates import SHARES, Axes
from swtrace.ledger.planning.prediction import UNSHARED
from swtrace.share import Share


@given(start=st.integers(0, 70), stack=st.integers(1, 70))
def test_every_candidate_is_one_that_a_series_accepts(start: int, stack: int) -> None:
    """In a stack of any size, each candidate is offered once, and its prefetch step fits its shared layers."""
    *shared, last = Axes(transports=("broadcast", "pull"), ranks=4).candidates(start, stack)
    assert last.share == UNSHARED
    layers = [each.share.layers(start, start + stack) for each in shared]
    assert all(1 <= each.prefetch_step <= len(found) - 2 for each, found in zip(shared, layers, strict=True))
    settings = [(found, each.prefetch_step, each.transport) for each, found in zip(shared, layers, strict=True)]
    assert len(settings) == len(set(settings))


def test_a_deep_stack_gets_all_combinations() -> None:
    """Where everything fits, every share is tried with every prefetch step, transport and window policy."""
    axes = Axes(("broadcast", "pull"), 4, (*SHARES, Share.parse("1/8")), (1, 2, 4), ("static", "rolling"))
    assert len(list(axes.candidates(0, 61))) == 7 * 3 * 2 * 2 + 1
