"""The life of a worker's weights outside of steps: how they are loaded, and who may touch them afterwards.

vLLM's executors call every worker through ``WorkerWrapperBase``, which hands most calls through by name.
So what a shared model cannot bear is refused there, too, whatever kind of worker it is and whoever calls it;
:mod:`swtrace.vllm.engine` refuses it before.
"""

from __future__ import annotations

import functools
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from swtrace.series.operations import forget
from swtrace.vllm.engine import FORBIDDEN, handed_through, refuse, shared_series
from swtrace.vllm.groups import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

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
"""Those that hand each tensor to its parameter's ``weight_loader`` and post-process afterwards."""

_WATCHED = "_swtrace_watched"


def refuse_loading(vllm_config: Any) -> None:
    """Raise :class:`Refused` where the weights are not loaded in a way that a series can follow."""
    load_format = str(getattr(vllm_config.load_config.load_format, "value", vllm_config.load_config.load_format))
    if load_format not in LOAD_FORMATS:
        raise Refused(
            f"load format {load_format} does not load weights one by one into their layers, or is unknown; "
            f"use one of {', '.join(LOAD_FORMATS)}"
        )


def watch_worker() -> None:
    """Make every worker of this process check its model when it is loaded, and refuse what it cannot bear; idempotent.

    Raises:
        Refused: vLLM's worker wrapper has another shape than the one known.
    """
    from vllm.v1.worker import worker_base

    wrapper: Any = getattr(worker_base, "WorkerWrapperBase", None)
    if wrapper is None or not hasattr(wrapper, "__getattr__"):
        raise Refused("vLLM's WorkerWrapperBase, which hands calls through to the worker, is gone")
    if hasattr(wrapper, _WATCHED):
        return
    load_model = getattr(wrapper, "load_model", handed_through("load_model"))

    def checked_load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load_model(self, *args, **kwargs)
        offloader = _series_offloader()
        if offloader is not None:
            offloader.loaded()
        return result

    wrapper.load_model = checked_load_model
    _watch_construction()
    for name in FORBIDDEN:
        setattr(wrapper, name, _refusing(name, getattr(wrapper, name, handed_through(name))))
    # An engine in the worker's own process may end without a word to the worker: vLLM 0.27 never calls shutdown
    # there. Before the ring is closed, which has exit priority 0; where all was said already, there is nothing left.
    Finalize(None, forget, exitpriority=1)
    setattr(wrapper, _WATCHED, True)


def _watch_construction() -> None:
    """Show every model to the offloader when it is built, before its weights are loaded."""
    from vllm.model_executor.model_loader import base_loader

    initialize_model: Callable[..., Any] = base_loader.initialize_model

    @functools.wraps(initialize_model)
    def watched_initialize_model(*args: Any, **kwargs: Any) -> Any:
        model = initialize_model(*args, **kwargs)
        offloader = _series_offloader()
        if offloader is not None:
            offloader.built(model)
        return model

    base_loader.initialize_model = watched_initialize_model


def _series_offloader() -> SeriesOffloader | None:
    """Return the offloader of this process, if it is ours."""
    from vllm.model_executor.offloader import get_offloader

    from swtrace.vllm.offloader import SeriesOffloader

    offloader = get_offloader()
    return offloader if isinstance(offloader, SeriesOffloader) else None


def _refusing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def refuse_or_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(name, shared_series(self))
        return call(self, *args, **kwargs)

    return refuse_or_call
