"""The ranks of a series, as ``torch.distributed`` connects them.

Each series has a communicator of its own, so that its operations queue behind no one else's and match
by their order alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import distributed as dist

if TYPE_CHECKING:
    from swtrace.series.group import Group

GLOO = "gloo"


def backend(group: Group) -> str:
    """Return the backend of a group's own communicator."""
    name: str = dist.get_backend(group.device_group)
    return name


class Communicator:
    """A fresh communicator over the ranks of a group."""

    def __init__(self, group: Group, description: str) -> None:
        """Make it; all ranks must make theirs in the same order.

        Args:
            group: its ranks. Where it can make a sibling of itself (vLLM), it does.
            description: names the communicator in torch's own diagnostics.
        """
        ranks = list(group.ranks)
        make_sibling = getattr(group, "make_sibling_device_group", None)
        if make_sibling is not None:
            self.process_group = make_sibling(description)
        else:
            self.process_group = dist.new_group(
                ranks, backend=backend(group), use_local_synchronization=True, group_desc=description
            )
        self.roots = [dist.get_group_rank(self.process_group, rank) for rank in ranks]
        """By group rank: the rank's number in the communicator."""
        self._messages = getattr(group, "cpu_group", None) or self.process_group
        self._order = [dist.get_group_rank(self._messages, rank) for rank in ranks]

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocks; all ranks take part."""
        items: list[object] = [None] * len(self._order)
        dist.all_gather_object(items, item, group=self._messages)
        return [items[rank] for rank in self._order]


def broadcast_options(root: int, *, asynchronous: bool) -> Any:
    """Return the options of a broadcast of one buffer.

    Args:
        root: the source's number in the communicator.
        asynchronous: run it beside the caller's work; otherwise on the caller's current stream, in order with it.
    """
    options = dist.BroadcastOptions()
    options.rootRank = root
    options.rootTensor = 0
    options.asyncOp = asynchronous
    return options
