"""What the plugin replaces in vLLM, and when: a few functions, everything else follows from them.

``EngineArgs.create_engine_config`` writes our settings into the config it makes, so that vLLM's
compile cache tells a model with waits from one without. ``create_offloader`` runs in workers only,
when a model runner is made and before the model is built; it answers with the series offloader.
``WorkerWrapperBase.load_model`` notices a runner that never asked for one. ``EngineCore`` refuses what a
shared model cannot bear. Whatever only a worker needs
is imported and put in place there, so that front-end processes load nothing they would not load anyway.

Everything is looked for before anything is replaced: a vLLM of another shape is left as it is.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from swtrace.errors import SeamError
from swtrace.settings import VARIABLES, Settings
from swtrace.vllm.configuration import settle
from swtrace.vllm.engine import FORBIDDEN, RPC, guarded, handed_through
from swtrace.vllm.presence import announcing, ranks_without
from swtrace.vllm.runner import asked, load_and_notice
from swtrace.vllm.support import RANGE, missing, supported

if TYPE_CHECKING:
    from collections.abc import Callable

Replacement = tuple[Any, str, Any]
"""Of an attribute: who has it, its name, what it becomes."""

logger = logging.getLogger("vllm.swtrace")

RUNNERS = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner")
"""Modules that import ``create_offloader`` by name, and may have done so before the plugin was called."""

_REPLACED = "_swtrace_original"
"""Attribute of each of our replacements; makes :func:`install` idempotent."""


def install() -> None:
    """Replace the functions, once per process."""
    settings = Settings.from_environment()
    if settings.directory is not None:  # workers inherit the variable, and maybe another working directory
        os.environ[VARIABLES["directory"]] = str(settings.directory)
    try:
        _require_supported()
        replacements = [*_create_offloader(), *_create_engine_config(), *_load_model(), *_engine_core(), *_group()]
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
        raise SeamError(
            f"vLLM {version} is not supported: swtrace knows {RANGE}; install one of these, or unset SWTRACE"
        )


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
        asked()
        return _offloader(original(offload_config))

    setattr(create_offloader, _REPLACED, original)
    runners = [sys.modules.get(name) for name in RUNNERS]
    # A runner that does not know the function is noticed when it has loaded a model.
    holders = [base, package, *(runner for runner in runners if hasattr(runner, "create_offloader"))]
    return [(holder, "create_offloader", create_offloader) for holder in holders]


def _create_engine_config() -> list[Replacement]:
    # A process that has not imported the module makes no config. Should one import it later all the same,
    # the worker still settles its own copy, before anything is compiled.
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
        settle(vllm_config)
        return vllm_config

    setattr(create_engine_config, _REPLACED, original)
    return [(engine_args, "create_engine_config", create_engine_config)]


def _load_model() -> list[Replacement]:
    # A worker calls the plugin from this module; elsewhere no model is loaded.
    module = sys.modules.get("vllm.v1.worker.worker_base")
    if module is None:
        return []
    wrapper = getattr(module, "WorkerWrapperBase", None)
    if wrapper is None:
        raise SeamError(_seam_message("WorkerWrapperBase"))
    if hasattr(wrapper, _REPLACED):  # on the class: lifecycle.py wraps the function once more
        return []
    original = vars(wrapper).get("load_model", handed_through("load_model"))
    return [(wrapper, "load_model", load_and_notice(original)), (wrapper, _REPLACED, original)]


def _engine_core() -> list[Replacement]:
    # Where a process imports the core later, its workers still refuse by themselves.
    core = getattr(sys.modules.get("vllm.v1.engine.core"), "EngineCore", None)
    if core is None or hasattr(core, _REPLACED):
        return []
    names = [name for name in (RPC, *FORBIDDEN) if name in vars(core)]
    return [*((core, name, guarded(name, vars(core)[name])) for name in names), (core, _REPLACED, names)]


def _group() -> list[Replacement]:
    # Where a process makes groups that did not know the plugin, it asks nobody whether they are there.
    coordinator = getattr(sys.modules.get("vllm.distributed.parallel_state"), "GroupCoordinator", None)
    if coordinator is None or hasattr(coordinator, _REPLACED):
        return []
    original = coordinator.__init__
    return [(coordinator, "__init__", announcing(original)), (coordinator, _REPLACED, original)]


def _offloader(chosen: Any) -> Any:
    """Return the series offloader, or the one that vLLM chose where nothing can be shared."""
    from vllm.config import get_current_vllm_config

    vllm_config = get_current_vllm_config()
    settings = settle(vllm_config)
    from swtrace.vllm.startup_agreement import decline

    if not settings.enabled:
        decline("additional_config turns swtrace off there")
        return chosen
    from swtrace.vllm.graphs import split_graphs
    from swtrace.vllm.groups import Refused, refuse_engine
    from swtrace.vllm.lifecycle import refuse_loading, watch_worker
    from swtrace.vllm.offloader import SeriesOffloader
    from swtrace.vllm.steps import mark_steps
    from swtrace.vllm.worker_identity import share_nothing

    try:
        _refuse_shape()
        _refuse_company()
        refuse_engine(vllm_config, chosen)
        refuse_loading(vllm_config)
        split_graphs(vllm_config)
        mark_steps()
        watch_worker()
    except Refused as refusal:
        decline(str(refusal))
        share_nothing(str(refusal), settings, vllm_config)
        return chosen
    return SeriesOffloader(settings, vllm_config)


def _refuse_shape() -> None:
    """Refuse where anything that a worker's part of the plugin holds on to is gone."""
    from swtrace.vllm.groups import Refused

    lacking = missing()
    if lacking:
        raise Refused(_seam_message(", ".join(lacking)))


def _refuse_company() -> None:
    """Refuse where a rank of the world runs without swtrace: it would be waited for in vain."""
    from swtrace.vllm.groups import Refused

    without = ranks_without()
    if without:
        ranks = f"rank{'s' if len(without) > 1 else ''} {', '.join(map(str, without))}"
        raise Refused(f"swtrace is off on {ranks}; set SWTRACE=1 for all ranks alike")


def _seam_message(missing: str) -> str:
    import vllm

    version = getattr(vllm, "__version__", "of unknown version")
    return (
        f"vLLM {version} does not have {missing}, through which weights are shared; "
        f"swtrace knows {RANGE}: install one of these, or unset SWTRACE"
    )
