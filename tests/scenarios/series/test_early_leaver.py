"""A rank that finishes first still sends its peers their last weights."""

from __future__ import annotations

import os
import time

import torch
from torch import nn

from swtrace.series import RankGroup, Series
from tests.support.patience import patience
from tests.support.ranks import ranks

LAYERS = 3
SIZE = 2048


def program(rank: int) -> bool:
    """Run one step of big layers. Rank 0 exits as soon as it is done; rank 1 is slow."""
    series = Series("o_proj", RankGroup.world(), 0, LAYERS, prefetch_step=1)
    layers = [nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.weight.fill_(index + 1)
            series.register(index, layer)
        series.post_process()
        same = True
        for _ in range(2):
            with series.step():
                for index, layer in enumerate(layers):
                    series.reach(index)
                    time.sleep(0.05 * rank)
                    same &= bool((layer(torch.ones(SIZE)) == SIZE * (index + 1)).all())
    series.close()
    if rank == 0:
        os._exit(0)
    return same


def test_a_rank_that_closes_first_has_sent_what_its_peers_wait_for() -> None:
    """A source may exit once its series is closed, and its peers still receive the layers of the last step."""
    with ranks(2, program) as (leaver, follower):
        assert follower.result() is True
        leaver.process.join(patience())
        assert leaver.process.exitcode == 0
