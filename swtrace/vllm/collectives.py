"""Marks in the ring that a rank is in a collective of vLLM, so that a hang there is named as such.

Every collective of a group runs through its coordinator, in eager mode and from the custom operators of compiled code.
Where a compiler traces the coordinator's own Python instead, as on CPU, nothing is marked.
On a GPU a collective is only launched, so the mark lasts as long as the launch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch.compiler import is_compiling

from swtrace.series.recording import in_collective
from swtrace.trace.schema import Collective

if TYPE_CHECKING:
    from collections.abc import Callable

_MARKED = "_swtrace_marks_collectives"
CALLS = {
    "_all_reduce_out_place": Collective.ALL_REDUCE,
    "_all_gather_out_place": Collective.ALL_GATHER,
    "all_gatherv": Collective.ALL_GATHER,
    "_reduce_scatter_out_place": Collective.REDUCE_SCATTER,
    "reduce_scatterv": Collective.REDUCE_SCATTER,
    "reduce_scatterv_into_output": Collective.REDUCE_SCATTER,
    "gather": Collective.GATHER,
    "broadcast": Collective.BROADCAST,
    "broadcast_object": Collective.BROADCAST,
    "broadcast_object_list": Collective.BROADCAST,
    "broadcast_tensor_dict": Collective.BROADCAST,
    "barrier": Collective.BARRIER,
    "send": Collective.SEND,
    "send_object": Collective.SEND,
    "send_tensor_dict": Collective.SEND,
    "recv": Collective.RECEIVE,
    "recv_object": Collective.RECEIVE,
    "recv_tensor_dict": Collective.RECEIVE,
    "dispatch": Collective.OTHER,
    "combine": Collective.OTHER,
}
"""Methods of the coordinator, as far as a version of vLLM has them."""


def mark_collectives() -> None:
    """Mark the collectives of this process's groups from now on; idempotent."""
    from vllm.distributed.parallel_state import GroupCoordinator

    if _MARKED in vars(GroupCoordinator):
        return
    setattr(GroupCoordinator, _MARKED, True)
    for name, kind in CALLS.items():
        call = vars(GroupCoordinator).get(name)
        if call is not None:
            setattr(GroupCoordinator, name, marked(call, kind))


def marked(call: Callable[..., Any], kind: Collective) -> Callable[..., Any]:
    """Return a collective that is marked while it runs, unless it is traced into a graph."""

    @functools.wraps(call)
    def marked_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or self.world_size == 1:
            return call(self, *args, **kwargs)
        with in_collective(kind):
            return call(self, *args, **kwargs)

    return marked_call
