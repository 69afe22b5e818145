"""Ranks without swtrace are known when the first group is made, without waiting for any of them."""

from __future__ import annotations

from torch import distributed as dist

from swtrace.vllm.presence import announcing, ranks_without
from tests.support.ranks import run_ranks


class Group:
    """Made like vLLM's groups: by all ranks of the world together."""

    def __init__(self) -> None:
        self.group = dist.new_group()


def program(rank: int, without: tuple[int, ...]) -> list[int]:
    """Make a group, announced or not, and return the ranks without swtrace."""
    make = Group.__init__ if rank in without else announcing(Group.__init__)
    make(object.__new__(Group))
    return ranks_without()


def test_ranks_without_are_known_to_all_others() -> None:
    """Ranks that announced themselves name those that did not. The others cannot know, and name none."""
    assert run_ranks(3, program, (1,)) == [[1], [], [1]]


def test_nobody_is_named_if_all_run_with_it() -> None:
    """The last rank to join the group has announced itself before the first one leaves."""
    assert run_ranks(3, program, ()) == [[], [], []]
