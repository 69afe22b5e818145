"""The communicator between the ranks of a series, from ``torch.distributed``.

Each series has its own communicator, so that its operations do not queue behind others and match
by their order alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from swtrace.errors import TransportError
from swtrace.units import listed

if TYPE_CHECKING:
    from swtrace.series.group import Group

GLOO = "gloo"


def backend(group: Group) -> str:
    """Return the backend of a group's own communicator."""
    name: str = dist.get_backend(group.device_group)
    return name


_calls: Counter[str] = Counter()
"""Number of roll calls so far, by purpose and ranks."""


def roll_call(group: Group, description: str, timeout_s: float) -> None:
    """Wait until every rank of a group has called this for the same purpose.

    Making a communicator also waits for the ranks, but for torch's half an hour, and then does not name those missing.

    Args:
        group: the ranks.
        description: the purpose.
        timeout_s: how long to wait; ``SWTRACE_TIMEOUT``.

    Raises:
        TransportError: ranks are missing; the message says which.
    """
    ranks = tuple(group.ranks)
    purpose = f"{description}/{','.join(map(str, ranks))}"
    store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
    keys = [f"swtrace/roll-call/{purpose}/{_calls[purpose]}/{rank}" for rank in ranks]
    _calls[purpose] += 1
    reason = ""
    try:
        store.set(keys[group.rank_in_group], "here")
        store.wait(keys, timedelta(seconds=timeout_s))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
    else:
        return
    try:
        missing = [rank for rank, key in zip(ranks, keys, strict=True) if not store.check([key])]
    except RuntimeError:  # in most torch worlds rank 0 hosts the store
        raise TransportError(f"torch's store is gone, and so is the rank that hosts it: {reason}") from None
    if not missing:  # the last one came just now
        return
    raise TransportError(
        f"{listed('rank', missing)} did not start post-processing within {timeout_s:g} s (died, or never calls it); "
        f"SWTRACE_TIMEOUT sets how long a rank waits for a peer"
    )


class Communicator:
    """A new communicator over the ranks of a group."""

    def __init__(self, group: Group, description: str, timeout_s: float) -> None:
        """Make the communicator; all ranks must do so in the same order.

        Args:
            group: the ranks. A group that can make a sibling of itself (vLLM) does so.
            description: names the communicator in torch's own diagnostics.
            timeout_s: how long an operation waits for a peer; a sibling has the timeout of its group.
        """
        ranks = list(group.ranks)
        make_sibling = getattr(group, "make_sibling_device_group", None)
        if make_sibling is not None:
            self.process_group = make_sibling(description)
        else:
            self.process_group = dist.new_group(
                ranks,
                timeout=timedelta(seconds=timeout_s),
                backend=backend(group),
                use_local_synchronization=True,
                group_desc=description,
            )
        self.roots = [dist.get_group_rank(self.process_group, rank) for rank in ranks]
        """By group rank, the rank's number in the communicator."""
        self._messages = getattr(group, "cpu_group", None) or self.process_group
        self._ranks = ranks

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocks; all ranks take part."""
        return _gather(self._messages, self._ranks, item)


def gather(group: Group, item: object) -> list[object]:
    """Return every rank's item, by group rank, through the group's own communicator. Blocks; all ranks take part.

    A group of one rank needs no communicator.
    """
    if group.world_size == 1:
        return [item]
    return _gather(getattr(group, "cpu_group", None) or group.device_group, group.ranks, item)


def _gather(messages: Any, ranks: Sequence[int], item: object) -> list[object]:
    items: list[object] = [None] * len(ranks)
    dist.all_gather_object(items, item, group=messages)
    return [items[dist.get_group_rank(messages, rank)] for rank in ranks]


def broadcast_options(root: int, *, asynchronous: bool) -> Any:
    """Return the options of a broadcast of one buffer.

    Args:
        root: the source's number in the communicator.
        asynchronous: run beside the caller's work; otherwise in the order of the caller's current stream.
    """
    options = dist.BroadcastOptions()
    options.rootRank = root
    options.rootTensor = 0
    options.asyncOp = asynchronous
    return options
