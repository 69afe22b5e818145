"""The communicator between the ranks of a series, from ``torch.distributed``.

Each series has its own communicator, so that its operations do not queue behind others and match
by their order alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from swtrace.errors import TransportError
from swtrace.series.peer_loss import reason
from swtrace.series.presence import world_store
from swtrace.units import listed

if TYPE_CHECKING:
    from swtrace.series.group import Group
    from swtrace.series.peer_loss import Peers

GLOO = "gloo"


def backend(group: Group) -> str:
    """Return the backend of a group's own communicator."""
    name: str = dist.get_backend(group.device_group)
    return name


_calls: Counter[str] = Counter()
"""Number of roll calls so far, by purpose and ranks."""


_FIRST_POLL_S, _LONGEST_POLL_S = 0.001, 0.05


def roll_call(group: Group, description: str, timeout_s: float, peers: Peers) -> None:
    """Wait until every rank of a group has called this for the same purpose.

    Making a communicator also waits for the ranks, but for torch's half an hour, and then does not name those missing.

    Args:
        group: the ranks.
        description: the purpose.
        timeout_s: how long to wait; ``SWTRACE_TIMEOUT``.
        peers: the other ranks, whose processes are known afterwards.

    Raises:
        TransportError: ranks are missing, or gone; the message says which.
    """
    ranks = tuple(group.ranks)
    purpose = f"{description}/{','.join(map(str, ranks))}"
    store = world_store()
    keys = [f"swtrace/roll-call/{purpose}/{_calls[purpose]}/{rank}" for rank in ranks]
    _calls[purpose] += 1
    try:
        store.set(keys[group.rank_in_group], "here")
        missing = _missing(store, dict(zip(ranks, keys, strict=True)), timeout_s, peers)
        peers.meet()
    except RuntimeError as error:  # in most torch worlds rank 0 hosts the store
        host = peers.find() or "torch's store is gone, and so is the rank that hosts it"
        raise TransportError(f"{host}: {reason(error)}") from None
    gone = peers.find() if missing and peers.gone() else ""
    if gone:
        raise TransportError(gone)
    if missing:
        raise TransportError(
            f"{listed('rank', missing)} did not start post-processing within {timeout_s:g} s (died, or never calls "
            f"it); SWTRACE_TIMEOUT sets how long a rank waits for a peer"
        )


def _missing(store: Any, keys: Mapping[int, str], timeout_s: float, peers: Peers) -> list[int]:
    """Wait until every rank has set its key, a rank is gone, or the time is over; return the ranks that have not."""
    deadline, pause_s = time.monotonic() + timeout_s, _FIRST_POLL_S
    while not store.check(list(keys.values())):
        peers.meet()
        if peers.gone() or time.monotonic() > deadline:
            return [rank for rank, key in keys.items() if not store.check([key])]
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_POLL_S)
    return []


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
