"""A worker's weights outside of steps: how they are loaded, and which later calls are refused.

vLLM's executors call every worker through ``WorkerWrapperBase``, which forwards most calls by name.
So calls that a shared model does not support are also refused there, for every kind of worker and caller.
:mod:`swtrace.vllm.engine` refuses them earlier.
"""

from __future__ import annotations

import functools
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from swtrace.series.operations import forget
from swtrace.vllm.engine import FORBIDDEN, delegating_method, refuse, shared_series
from swtrace.vllm.groups import Refused, Unobservable

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtrace.vllm.observing import ObservingOffloader
    from swtrace.vllm.offloader import SeriesOffloader

LOAD_FORMATS = (
    "auto",
    "dummy",
    "fastsafetensors",
    "hf",
    "instanttensor",
    "mistral",
    "npcache",
    "pt",
    "runai_streamer",
    "safetensors",
)
"""Formats that pass each tensor to its parameter's ``weight_loader`` and post-process afterwards."""

_WATCHED = "_swtrace_watched"


def refuse_loading(vllm_config: Any) -> None:
    """Raise :class:`Refused` if a series cannot follow the way in which the weights are loaded."""
    load_format = str(getattr(vllm_config.load_config.load_format, "value", vllm_config.load_config.load_format))
    if load_format not in LOAD_FORMATS:
        raise Refused(
            f"load format {load_format} does not load weights one by one into their layers, or is unknown; "
            f"use one of: {', '.join(LOAD_FORMATS)}"
        )


def watch_worker() -> None:
    """Make the workers of this process check loaded models and refuse unsupported calls; idempotent.

    Raises:
        Unobservable: vLLM's worker wrapper has an unknown shape.
    """
    from vllm.v1.worker import worker_base

    wrapper: Any = getattr(worker_base, "WorkerWrapperBase", None)
    if wrapper is None or not hasattr(wrapper, "__getattr__"):
        raise Unobservable("this vLLM has no WorkerWrapperBase that forwards calls to the worker")
    if hasattr(wrapper, _WATCHED):
        return
    load_model = getattr(wrapper, "load_model", delegating_method("load_model"))

    def checked_load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load_model(self, *args, **kwargs)
        offloader = _our_offloader()
        if offloader is not None:
            offloader.loaded()
        return result

    wrapper.load_model = checked_load_model
    _watch_construction()
    for name in FORBIDDEN:
        setattr(wrapper, name, _refusing(name, getattr(wrapper, name, delegating_method(name))))
    # An engine in the worker's own process may end without notifying the worker: vLLM 0.27 never calls shutdown
    # there. Runs before the ring is closed, which has exit priority 0, and does nothing after a proper shutdown.
    Finalize(None, forget, exitpriority=1)
    setattr(wrapper, _WATCHED, True)


def _watch_construction() -> None:
    """Pass every model to the offloader once it is built, before its weights are loaded."""
    from vllm.model_executor.model_loader import base_loader

    initialize_model: Callable[..., Any] = base_loader.initialize_model

    @functools.wraps(initialize_model)
    def watched_initialize_model(*args: Any, **kwargs: Any) -> Any:
        model = initialize_model(*args, **kwargs)
        offloader = _our_offloader()
        if offloader is not None:
            offloader.built(model)
        return model

    base_loader.initialize_model = watched_initialize_model


def _our_offloader() -> SeriesOffloader | ObservingOffloader | None:
    """Return the offloader of this process, if it is ours."""
    from vllm.model_executor.offloader import get_offloader

    from swtrace.vllm.observing import ObservingOffloader
    from swtrace.vllm.offloader import SeriesOffloader

    offloader = get_offloader()
    return offloader if isinstance(offloader, SeriesOffloader | ObservingOffloader) else None


def _refusing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def refuse_or_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(name, shared_series(self))
        return call(self, *args, **kwargs)

    return refuse_or_call
