"""The ranks that share a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Group(Protocol):
    """What a series needs of its group: vLLM's ``GroupCoordinator``, or anything with the same attributes.

    A group may also offer ``cpu_group`` (a process group for small messages) and
    ``make_sibling_device_group(description)`` (a new communicator over the same ranks).
    """

    @property
    def ranks(self) -> Sequence[int]:
        """Global ranks, in group order."""

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""

    @property
    def rank_in_group(self) -> int:
        """This process's index in ``ranks``."""

    @property
    def device_group(self) -> Any:
        """The group's ``torch.distributed`` process group."""


@dataclass(frozen=True, slots=True)
class RankGroup:
    """A plain :class:`Group`."""

    ranks: tuple[int, ...]
    rank_in_group: int
    device_group: Any = None

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)

    @classmethod
    def world(cls) -> RankGroup:
        """Return the group of all ranks of the default process group."""
        from torch import distributed as dist

        return cls(tuple(range(dist.get_world_size())), dist.get_rank(), dist.group.WORLD)
