"""Stretches of time as cells: rounding removes nothing that matters and adds nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swtrace_tui.palette import Span
from swtrace_tui.views.lanes import channel_lane, compute_lane, covered, rasterised

from swtrace.ledger.facts import CAUSES, Cause
from tests.support.scenes import (
    pictured,
)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 200)), max_size=20), st.integers(1, 40))
def test_coverage_is_what_a_plain_loop_finds(stretches: list[tuple[int, int]], cells: int) -> None:
    """For any stretches, each interval's coverage is the sum of the overlaps."""
    begins = np.array([begin for begin, _ in stretches], np.int64)
    ends = np.array([begin + length for begin, length in stretches], np.int64)
    edges = np.linspace(0, 1000, cells + 1)

    expected = [
        sum(max(0.0, min(right, end) - max(left, begin)) for begin, end in zip(begins, ends, strict=True))
        for left, right in pairwise(edges)
    ]
    assert covered(begins, ends, edges) == pytest.approx(expected, abs=1e-6)


def test_a_stall_of_a_third_of_a_cell_is_seen() -> None:
    """A short stall beside compute still colours its cell; a trace of one does not."""
    compute = (np.array([0]), np.array([100]))

    def first(stall: int) -> Span:
        lane = {Span.COMPUTE: compute, Span.STALL: (np.array([0]), np.array([stall]))}
        return rasterised([lane], 0, 100, 10)[0]

    assert first(4) is Span.STALL
    assert first(1) is Span.COMPUTE


def test_outside_the_step_nothing_is_shown() -> None:
    """Cells before the begin and after the end of a rank's step are empty, so that a late rank is visible."""
    lane = {Span.COMPUTE: (np.array([40]), np.array([60]))}

    kinds = rasterised([lane], 0, 100, 10)

    assert kinds == [Span.OUTSIDE] * 4 + [Span.COMPUTE] * 2 + [Span.OUTSIDE] * 4


def test_timeline_stalls_add_up_to_the_ledgers() -> None:
    """The stall stretches of a rank's lane add up to the ledger's stall of that step."""
    for step in pictured("straggler").series[0].steps[1:]:
        for rank in range(len(step.ranks)):
            begins, ends = compute_lane(step, rank)[Span.STALL]
            assert int((ends - begins).sum()) == int(step.stall_ns[rank].sum())


def test_exposed_transfer_is_the_transfer_part_of_the_stall() -> None:
    """The exposed transfer of the channel lane is the stall that the ledger attributes to transfer."""
    for step in pictured("stalled").series[0].steps[1:]:
        for rank in range(len(step.ranks)):
            begins, ends = channel_lane(step, rank)[Span.EXPOSED]
            assert int((ends - begins).sum()) == int(step.cause_ns[CAUSES.index(Cause.TRANSFER), rank].sum())
