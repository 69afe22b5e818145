"""Who runs without swtrace is known when the first group is made, without waiting for anybody."""

from __future__ import annotations

from ranks import run_ranks
from torch import distributed as dist

from swtrace.vllm.presence import announcing, ranks_without


class Group:
    """Made as vLLM makes its own: by all ranks of the world together."""

    def __init__(self) -> None:
        self.group = dist.new_group()


def program(rank: int, without: tuple[int, ...]) -> list[int]:
    """Make a group, announced or not; return which ranks run without."""
    make = Group.__init__ if rank in without else announcing(Group.__init__)
    make(object.__new__(Group))
    return ranks_without()


def test_ranks_without_are_known_to_all_others() -> None:
    """Those that announced themselves name those that did not; these, which cannot tell, name nobody."""
    assert run_ranks(3, program, (1,)) == [[1], [], [1]]


def test_where_all_run_with_it_nobody_is_named() -> None:
    """Whoever comes to the group last has announced itself when the first leaves."""
    assert run_ranks(3, program, ()) == [[], [], []]
