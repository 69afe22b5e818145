"""The range of layers of a series is the one that vLLM builds on this rank, and which of them are shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm.layouts import shares, stages

pytestmark = pytest.mark.vllm


def test_each_stage_has_its_own_first_layer(folder: Path) -> None:
    """With an uneven split a pipeline stage's series begins and ends where vLLM builds the stage's layers."""
    assert fork_ranks(stages, (11, "5,2,4"), folder) == ([(0, 5), (5, 7), (7, 11)],)


ACCEPTED = "the model built none of the layers to share"
"""What it says if it goes on to the layers, which this test has not built."""


def test_each_stage_shares_its_part(folder: Path) -> None:
    """A stage shares the same fraction as the others, or the listed layers that it has; too few are refused."""
    cases = (("all", 3), ("1/2", 1), ("layers:0-6:2,8,9", 0), ("1/2", 2), ("1/5", 0), ("layers:2-13:3", 0))
    (told,) = fork_ranks(shares, (11, "5,6", cases), folder)
    assert told[0] == [(tuple(range(5)), ACCEPTED), (tuple(range(5, 11)), ACCEPTED)]
    assert told[1] == [((0, 2, 4), ACCEPTED), ((5, 7, 9), ACCEPTED)]
    assert told[2] == [((0, 2, 4), ACCEPTED), ((6, 8, 9), ACCEPTED)]
    assert told[3][0] == (
        (0, 2, 4),
        (
            "prefetch step 2 needs at least 4 shared layers, but SWTRACE_SHARE=1/2 shares 3 of the 5 on this rank; "
            "lower SWTRACE_PREFETCH_STEP or share more"
        ),
    )
    assert told[4][0][1].startswith("prefetch step 0 needs at least 2 shared layers, but SWTRACE_SHARE=1/5 shares 1 of")
    assert told[5][1][1] == "SWTRACE_SHARE=layers:2-13:3 names layers 11, but those of the model are 0-10"
