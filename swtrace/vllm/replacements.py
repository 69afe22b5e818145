"""The vLLM functions that the plugin replaces, and when it replaces them.

- ``EngineArgs.create_engine_config`` writes our settings into the config it makes, so that vLLM's compile cache
  distinguishes a model with waits from one without; and how many replicas of a dense model there will be.
- ``create_offloader`` runs only in workers, after the model runner exists and before the model is built. It returns
  the series offloader.
- ``WorkerWrapperBase.load_model`` notices a model runner that never requested an offloader.
- ``EngineCore`` refuses calls that a shared model does not support.
- ``GroupCoordinator`` announces this rank to the others.
- ``NewRequestData.from_request`` passes a request's trace context on to the workers.

Code that only workers need is imported and installed there, so front-end processes load nothing extra.
All functions are looked up before any is replaced, so an incompatible vLLM stays unchanged.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from swtrace.errors import SeamError
from swtrace.settings import VARIABLES, Settings
from swtrace.units import listed
from swtrace.vllm.configuration import resolve_settings
from swtrace.vllm.engine import FORBIDDEN, RPC, delegating_method, guarded
from swtrace.vllm.presence import announcing, ranks_without
from swtrace.vllm.replicas import note_replicas
from swtrace.vllm.request_traces import carrying
from swtrace.vllm.runner import check_after_loading, note_offloader_request
from swtrace.vllm.support import RANGE, missing, supported

if TYPE_CHECKING:
    from collections.abc import Callable

Replacement = tuple[Any, str, Any]
"""An attribute to replace: its holder, its name, its new value."""

logger = logging.getLogger("vllm.swtrace")

RUNNERS = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner")
"""Modules that import ``create_offloader`` by name, maybe before the plugin is called."""

_REPLACED = "_swtrace_original"
"""Attribute that marks each of our replacements and makes :func:`install` idempotent."""


def install() -> None:
    """Replace the functions once per process."""
    settings = Settings.from_environment()
    for name in ("directory", "plan"):  # workers inherit the variable, maybe with another working directory
        if (path := getattr(settings, name)) is not None:
            os.environ[VARIABLES[name]] = str(path)
    try:
        _require_supported()
        replacements = [
            *_create_offloader(),
            *_create_engine_config(),
            *_load_model(),
            *_engine_core(),
            *_group(),
            *_new_request(),
        ]
    except SeamError as problem:
        if settings.strict:
            raise
        logger.warning("swtrace is off: %s", problem)
        return
    for holder, name, replacement in replacements:
        setattr(holder, name, replacement)


def _require_supported() -> None:
    import vllm

    version = str(getattr(vllm, "__version__", ""))
    if not supported(version):
        raise SeamError(f"vLLM {version} is not supported; install {RANGE}, or unset SWTRACE")


def _create_offloader() -> list[Replacement]:
    try:
        import vllm.model_executor.offloader as package
        from vllm.model_executor.offloader import base
    except ImportError as problem:
        raise SeamError(_seam_message("the package vllm.model_executor.offloader")) from problem
    for name in ("BaseOffloader", "NoopOffloader", "create_offloader", "set_offloader"):
        if not hasattr(base, name):
            raise SeamError(_seam_message(f"vllm.model_executor.offloader.base.{name}"))
    if not hasattr(base.BaseOffloader, "wrap_modules"):
        raise SeamError(_seam_message("BaseOffloader.wrap_modules"))
    original = base.create_offloader
    if hasattr(original, _REPLACED):
        return []

    @functools.wraps(original)
    def create_offloader(offload_config: Any) -> Any:
        note_offloader_request()
        return _offloader(original(offload_config))

    setattr(create_offloader, _REPLACED, original)
    runners = [sys.modules.get(name) for name in RUNNERS]
    # A runner that does not use the function is noticed once it has loaded a model.
    holders = [base, package, *(runner for runner in runners if hasattr(runner, "create_offloader"))]
    return [(holder, "create_offloader", create_offloader) for holder in holders]


def _create_engine_config() -> list[Replacement]:
    # A process without this module makes no config. If it imports the module later after all, the worker still
    # resolves its own copy before anything is compiled.
    module = sys.modules.get("vllm.engine.arg_utils")
    if module is None:
        return []
    engine_args = getattr(module, "EngineArgs", None)
    original: Callable[..., Any] | None = getattr(engine_args, "create_engine_config", None)
    if engine_args is None or original is None:
        raise SeamError(_seam_message("EngineArgs.create_engine_config"))
    if hasattr(original, _REPLACED):
        return []

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        resolve_settings(vllm_config)
        note_replicas(vllm_config)
        return vllm_config

    setattr(create_engine_config, _REPLACED, original)
    return [(engine_args, "create_engine_config", create_engine_config)]


def _load_model() -> list[Replacement]:
    # Workers call the plugin from this module. Processes without it load no model.
    module = sys.modules.get("vllm.v1.worker.worker_base")
    if module is None:
        return []
    wrapper = getattr(module, "WorkerWrapperBase", None)
    if wrapper is None:
        raise SeamError(_seam_message("WorkerWrapperBase"))
    if hasattr(wrapper, _REPLACED):  # on the class, because lifecycle.py wraps the function again
        return []
    original = vars(wrapper).get("load_model", delegating_method("load_model"))
    return [(wrapper, "load_model", check_after_loading(original)), (wrapper, _REPLACED, original)]


def _engine_core() -> list[Replacement]:
    # If a process imports the core later, its workers still refuse these calls.
    core = getattr(sys.modules.get("vllm.v1.engine.core"), "EngineCore", None)
    if core is None or hasattr(core, _REPLACED):
        return []
    names = [name for name in (RPC, *FORBIDDEN) if name in vars(core)]
    return [*((core, name, guarded(name, vars(core)[name])) for name in names), (core, _REPLACED, names)]


def _new_request() -> list[Replacement]:
    # Only a process with a scheduler makes these. Without them, steps have no links to requests.
    module = sys.modules.get("vllm.v1.core.sched.output")
    data = getattr(module, "NewRequestData", None)
    if data is None or not hasattr(data, "from_request") or hasattr(data, _REPLACED):
        return []
    original = data.from_request
    return [(data, "from_request", carrying(original)), (data, _REPLACED, original)]


def _group() -> list[Replacement]:
    # A process that made its groups before the plugin was called does not check which ranks are present.
    coordinator = getattr(sys.modules.get("vllm.distributed.parallel_state"), "GroupCoordinator", None)
    if coordinator is None or hasattr(coordinator, _REPLACED):
        return []
    original = coordinator.__init__
    return [(coordinator, "__init__", announcing(original)), (coordinator, _REPLACED, original)]


def _offloader(chosen: Any) -> Any:
    """Return the offloader that shares, observes or watches, or the one that vLLM chose if none can."""
    from vllm.config import get_current_vllm_config

    vllm_config = get_current_vllm_config()
    settings = resolve_settings(vllm_config)
    from swtrace.vllm.startup_agreement import decline

    if not settings.enabled:
        decline("its additional_config disables swtrace", settings, vllm_config)
        return chosen
    from swtrace.vllm.collectives import mark_collectives
    from swtrace.vllm.graphs import split_graphs
    from swtrace.vllm.groups import Refused, explained, refuse_engine, refuse_to_observe
    from swtrace.vllm.lifecycle import refuse_loading, watch_worker
    from swtrace.vllm.observing import ObservingOffloader
    from swtrace.vllm.offloader import SeriesOffloader
    from swtrace.vllm.prefetch import PrefetchWatcher, prefetches
    from swtrace.vllm.steps import mark_steps
    from swtrace.vllm.worker_identity import share_nothing

    watches = prefetches(chosen) and not settings.share.observes
    try:
        _refuse_incomplete_vllm()
        if settings.share.observes or watches:
            refuse_to_observe(vllm_config)
        else:
            _refuse_partial_world()
            refuse_engine(vllm_config, chosen)
            refuse_loading(vllm_config)
        if not watches:
            split_graphs(vllm_config)
        mark_steps()
        mark_collectives()
        watch_worker()
    except Refused as refusal:
        decline(str(refusal), settings, vllm_config)
        share_nothing(explained(refusal), settings, vllm_config)
        return chosen
    if watches:
        return PrefetchWatcher(settings, vllm_config, chosen)
    if settings.share.observes:
        return ObservingOffloader(settings, vllm_config, chosen)
    return SeriesOffloader(settings, vllm_config)


def _refuse_incomplete_vllm() -> None:
    """Refuse if this vLLM lacks anything that the plugin uses in a worker."""
    from swtrace.vllm.groups import Unobservable

    lacking = missing()
    if lacking:
        raise Unobservable(_seam_message(", ".join(lacking)))


def _refuse_partial_world() -> None:
    """Refuse if a rank of the world runs without swtrace, because the others would wait for it in vain."""
    from swtrace.vllm.groups import Refused

    without = ranks_without()
    if without:
        raise Refused(f"swtrace is off on {listed('rank', without)}; set SWTRACE=1 on all ranks")


def _seam_message(missing: str) -> str:
    import vllm

    version = getattr(vllm, "__version__", "of unknown version")
    return (
        f"vLLM {version} does not have {missing}, which swtrace needs to share weights; "
        f"install {RANGE}, or unset SWTRACE"
    )
