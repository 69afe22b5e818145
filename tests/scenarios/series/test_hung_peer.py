"""A peer that is alive but hangs: the others do not wait for it forever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from swtrace.errors import PeerLostError
from swtrace.series import RankGroup, Series
from tests.support.patience import eventually, patience
from tests.support.ranks import run_ranks


def program(rank: int, folder: str) -> str:
    """Let rank 0 stop reaching until rank 1 gives up, and return the error of rank 1."""
    given_up = Path(folder, "given up")
    group = RankGroup.world()
    series = Series("o_proj", group, 0, 4, prefetch_step=1)
    for layer in range(4):
        series.register(layer, nn.Linear(8, 8, bias=False, dtype=torch.float32))
    series.post_process()
    if rank == 0:
        series.reach(0)
        eventually(given_up.exists, "rank 1 to give up")
        return ""
    for layer in (0, 1):
        series.reach(layer)
        series.wait(layer)
    series.reach(2)
    with pytest.raises(PeerLostError) as lost:
        series.wait(2)
    given_up.touch()
    return str(lost.value)


def test_a_rank_gives_a_hung_peer_up_after_the_timeout_set(tmp_path: Path) -> None:
    """SWTRACE_TIMEOUT bounds a wait, and the error names series, layer and source rank."""
    # Long enough for a peer that does not hang, because the same timeout bounds the earlier waits.
    timeout = f"{patience(1):.1f}"
    _, told = run_ranks(2, program, str(tmp_path), environment={"SWTRACE_TIMEOUT": timeout})
    assert "'o_proj'" in told
    assert "layer 2" in told
    assert "rank 0" in told
    assert "SWTRACE_TIMEOUT" in told
