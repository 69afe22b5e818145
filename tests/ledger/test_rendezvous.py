"""Which ranks wait for which issue on gloo: the ledger's model compared with ranks that issue late on purpose."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from swtrace.ledger.pending import Waits
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.series import RankGroup
from swtrace.series.torch_transport import TorchTransport
from tests.support.moved import Moved
from tests.support.patience import eventually
from tests.support.ranks import run_ranks

MARGIN_S = 0.1
"""Time between the end of the ranks that are not held and the late issue, in which the others could end too."""


def held_ranks(size: int, source: int, late: int) -> set[int]:
    """Return the other ranks that the ledger's model holds up until the late rank issues."""
    issued = np.zeros((1, size, 1), np.int64)
    issued[0, late, 0] = 1
    everybody = Waits.where(np.ones_like(issued))
    last, by = Rendezvous(TorchTransport.rendezvous, size, np.array([source])).last_issue(issued, everybody)
    held = {rank for rank in range(size) if last[rank]}
    assert by.tolist() == [late if rank in held else rank for rank in range(size)]
    return held - {source, late}


def program(rank: int, size: int, folder: str) -> list[tuple[int, int, int]]:
    """Broadcast from every source with every other rank late; return (source, late rank, when issued or done)."""
    transport = TorchTransport(RankGroup.world(), description="swtrace", timeout_s=600.0)
    buffer = torch.zeros(200_000, dtype=torch.uint8)
    told = []
    for source in range(size):
        for late in range(size):
            if late == source:
                continue
            free = [Path(folder, f"{source} {late} {other}") for other in range(size)]
            dist.barrier()
            if rank == late:
                awaited = set(range(size)) - held_ranks(size, source, late) - {source, late}
                eventually(lambda: all(free[other].exists() for other in awaited), f"{awaited} of {source}")  # noqa: B023
                time.sleep(MARGIN_S)
                told.append((source, late, time.monotonic_ns()))
                transport.issue(buffer, Moved(source)).wait()
            else:
                transport.issue(buffer, Moved(source)).wait()
                told.append((source, late, time.monotonic_ns()))
                free[rank].touch()
            dist.barrier()
    return told


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_late_rank_holds_up_whom_the_model_says(size: int, tmp_path: Path) -> None:
    """For every source and late rank, exactly those ranks are held whose last issue is that of the late rank."""
    moments = [
        {(source, late): moment_ns for source, late, moment_ns in told}
        for told in run_ranks(size, program, size, str(tmp_path))
    ]
    for source, late in moments[0]:
        held = held_ranks(size, source, late)
        for rank in set(range(size)) - {source, late}:
            waited = moments[rank][source, late] >= moments[late][source, late]
            assert waited == (rank in held), (rank, source, late)


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
