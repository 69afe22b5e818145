"""Refuse in the engine's core what a shared model cannot bear, before any worker hears of it.

Each of these calls would read windows as if they were the layers' own weights, or write weights behind the series'
back. Refused by the workers alone they do harm: vLLM pauses its scheduler before it lets the workers sleep, and of
several workers that raise it takes one answer, so that the others' answer its next calls.

Imported by every process of vLLM: by itself it loads neither torch nor the runtime.
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


def handed_through(name: str) -> Callable[..., Any]:
    """Return what stands in for a method that a worker's wrapper has not: a call of the worker's own."""

    def hand_through(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.worker, name)(*args, **kwargs)

    return hand_through


def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the engine's core that refuses before it does anything.

    ``name`` is one of :data:`FORBIDDEN`, or :data:`RPC`, which carries the name of a worker's method.
    """

    @functools.wraps(call)
    def guarded_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("method", args[0] if args else None) if name == RPC else name
        # In later versions level 0 only pauses the scheduler, and leaves the weights alone.
        pausing_only = name == "sleep" and kwargs.get("level", args[0] if args else 1) == 0
        if asked in FORBIDDEN and not pausing_only:
            for shared in self.model_executor.collective_rpc(shared_series):
                refuse(asked, shared)
        return call(self, *args, **kwargs)

    return guarded_call


def shared_series(_worker: object) -> list[str]:
    """Return the names of the series that this process's model shares."""
    from swtrace.series.operations import numbered

    return [series.name for series in numbered() if not series.withdrawn]


def refuse(name: str, shared: list[str]) -> None:
    """Raise RefusedError for a call of this name where these series are shared."""
    if shared:
        raise RefusedError(
            f"{name}: the weights of {', '.join(shared)} are shared between ranks, so this rank has not all of them; "
            "unset SWTRACE to use it"
        )
