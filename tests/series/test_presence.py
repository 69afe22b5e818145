"""Ranks of a torch world know each other's processes, without waiting for each other."""

from __future__ import annotations

import os

from torch import distributed as dist

from swtrace.series.presence import announce, announced, gave_up, give_up
from tests.support.ranks import run_ranks


def program(rank: int) -> tuple[int, list[str], list[bool]]:
    """Let two of three ranks announce themselves and the first give up; return this process, and what it knows."""
    if rank < 2:
        announce()
    if rank == 0:
        give_up()
    dist.barrier()
    return os.getpid(), [announced(each) for each in range(3)], [gave_up(each) for each in range(3)]


def test_ranks_know_who_is_there_and_who_gave_up() -> None:
    """A rank that did not announce itself has no name."""
    pids, (names, *others), given_up = zip(*run_ranks(3, program), strict=True)
    assert [int(name.split()[-2]) for name in names[:2]] == list(pids[:2])
    assert names[2] == ""
    assert all(other == names for other in others)
    assert set(map(tuple, given_up)) == {(True, False, False)}
