"""Who waits for whose issue on gloo: the ledger's model against ranks that issue late on purpose."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import distributed as dist

from swtrace.ledger.rendezvous import Rendezvous
from swtrace.series import RankGroup
from swtrace.series.torch_transport import TorchTransport

DELAY_S = 0.2


def program(rank: int, size: int) -> list[tuple[int, int, float]]:
    """Broadcast from every source with every other rank late; return (source, late rank, s until done)."""
    transport = TorchTransport(RankGroup.world())
    buffer = torch.zeros(200_000, dtype=torch.uint8)
    told = []
    for source in range(size):
        for late in range(size):
            if late == source:
                continue
            dist.barrier()
            if rank == late:
                time.sleep(DELAY_S)
            begin = time.monotonic()
            transport.issue(buffer, source).wait()
            told.append((source, late, time.monotonic() - begin))
            dist.barrier()
    return told


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_late_rank_holds_up_whom_the_model_says(size: int) -> None:
    """For every source and every late rank, exactly the ranks are held whose last issue is the late rank's."""
    held = run_ranks(size, program, size)
    for rank, told in enumerate(held):
        for source, late, seconds in told:
            if rank in (source, late):
                continue
            issued = np.zeros((1, size, 1), np.int64)
            issued[0, late, 0] = 1
            last, by = Rendezvous(TorchTransport.rendezvous, size, np.array([source])).last_issue(issued)
            assert (seconds > DELAY_S / 2) == bool(last[0, rank, 0]), (rank, source, late, seconds)
            assert by[0, rank, 0] == (late if last[0, rank, 0] else rank)


def test_the_kinds_of_rendezvous_differ_as_they_are_described() -> None:
    """Of eight ranks, rank 5's delivery from rank 0 waits for 0 and 5; in a tree for 1 too; as a group for all."""
    for kind, needed in (("source", {0, 5}), ("tree", {0, 1, 5}), ("group", set(range(8)))):
        rendezvous = Rendezvous(kind, 8, np.array([0]))
        found = set()
        for late in range(8):
            issued = np.zeros(8, np.int64)
            issued[late] = 1
            if rendezvous.last_issue_at(0, issued)[5]:
                found.add(late)
        assert found == needed
