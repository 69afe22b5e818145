"""A forward that fails while its peers are held elsewhere: its error is raised, and the next steps are correct."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch import nn

from swtrace.series import RankGroup, Series, circle
from tests.support.ranks import run_ranks

LAYERS = 12
SIZE = 16


class ForwardDiedError(Exception):
    """The forward ended early."""


def program(rank: int, windows: str) -> tuple[list[bool], int]:
    """Let rank 0's forward fail at layer 2 while rank 1 is held there until that has happened; then take two steps."""
    circle.ABORT_PATIENCE_S = 0.2
    store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
    series = Series("o_proj", RankGroup.world(), 0, LAYERS, prefetch_step=1, windows=windows)
    layers = [nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.weight.fill_(index + 1)
            series.register(index, layer)
        series.post_process()

    def forward(*, disturbed: bool) -> bool:
        same = True
        with series.step():
            for index, layer in enumerate(layers):
                if disturbed and index == 2:
                    if rank == 0:
                        raise ForwardDiedError
                    store.wait(["told"], timedelta(seconds=30))
                series.reach(index)
                same &= bool((layer(torch.ones(SIZE)) == SIZE * (index + 1)).all())
        return same

    same = [forward(disturbed=False)]
    with suppress(ForwardDiedError):
        same.append(forward(disturbed=True))
    store.set("told", "")
    same += [forward(disturbed=False) for _ in range(2)]
    return same, series.statistics().aborted_steps


@pytest.mark.parametrize("windows", ["static", "rolling"])
def test_a_dead_forward_does_not_wait_for_peers_that_are_held(windows: str) -> None:
    """Its error is raised while they are held, and its remaining broadcasts are issued when its next step begins."""
    died, held = run_ranks(2, program, windows, environment={"SWTRACE_TIMEOUT": "40"})
    assert died == ([True] * 3, 1)
    assert held == ([True] * 4, 0)
