"""Refusal, in the engine's core, of calls that a shared model does not support, before they reach a worker.

These calls would read windows as if they were the layers' own weights, or write weights without the series noticing.
Refusing them only in the workers does harm. vLLM pauses its scheduler before it lets the workers sleep. And if
several workers raise, it reads one answer and takes those of the others as answers to its next calls.

All processes of vLLM import this module, so importing it loads neither torch nor the runtime.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from swtrace.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

FORBIDDEN = (
    "compute_weight_checksums",
    "discard",
    "elastic_ep_execute",
    "finish_weight_update",
    "init_weight_transfer_engine",
    "reload_weights",
    "reset_weights",
    "save_sharded_state",
    "save_tensorized_model",
    "sleep",
    "start_draft_weight_update",
    "start_weight_update",
    "update_weights",
)
"""Worker calls that read or write the model's weights while it serves."""

RPC = "collective_rpc"


def delegating_method(name: str) -> Callable[..., Any]:
    """Return a method for a worker's wrapper that calls the worker's method of this name."""

    def delegate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.worker, name)(*args, **kwargs)

    return delegate


def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the engine's core that may refuse before it calls the original.

    ``name`` is one of :data:`FORBIDDEN`, or :data:`RPC`, whose arguments name a method of the worker.
    """

    @functools.wraps(call)
    def guarded_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        method = kwargs.get("method", args[0] if args else None) if name == RPC else name
        # In later versions, level 0 only pauses the scheduler and leaves the weights alone.
        pausing_only = name == "sleep" and kwargs.get("level", args[0] if args else 1) == 0
        if method in FORBIDDEN and not pausing_only:
            for shared in self.model_executor.collective_rpc(shared_series):
                refuse(method, shared)
        return call(self, *args, **kwargs)

    return guarded_call


def shared_series(_worker: object) -> list[str]:
    """Return the names of the series that the model of this process shares. Observed ones restrict nothing."""
    from swtrace.series.operations import numbered

    return [series.name for series in numbered() if not (series.withdrawn or series.observes)]


def refuse(name: str, shared: list[str]) -> None:
    """Raise RefusedError for a call of this name if any series is shared."""
    if shared:
        raise RefusedError(
            f"{name}: the weights of {', '.join(shared)} are shared between ranks, so this rank does not hold all of "
            "them; unset SWTRACE to use this call"
        )
