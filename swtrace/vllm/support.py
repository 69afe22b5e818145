"""Supported versions of vLLM and the parts of it that swtrace uses. The plugin enforces both, the doctor shows them."""

from __future__ import annotations

import importlib
import re

OLDEST = (0, 27, 1)
BEYOND = (0, 34)
"""The first version that is not supported. Also in ``pyproject.toml``, as the extra ``vllm``."""

RANGE = f"vllm>={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, BEYOND))}"

SEAM = (
    ("vllm.model_executor.offloader.base", "BaseOffloader.wrap_modules"),
    ("vllm.model_executor.offloader.base", "NoopOffloader"),
    ("vllm.model_executor.offloader.base", "create_offloader"),
    ("vllm.model_executor.offloader.base", "get_offloader"),
    ("vllm.model_executor.offloader.base", "set_offloader"),
    ("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
    ("vllm.config", "get_current_vllm_config"),
    ("vllm.distributed.parallel_state", "GroupCoordinator.make_sibling_device_group"),
    ("vllm.distributed.parallel_state", "get_pp_group"),
    ("vllm.distributed.parallel_state", "get_tp_group"),
    ("vllm.distributed.parallel_state", "get_world_group"),
    ("vllm.distributed.utils", "get_pp_indices"),
    ("vllm.model_executor.layers.linear", "LinearBase"),
    ("vllm.model_executor.model_loader.base_loader", "initialize_model"),
    ("vllm.v1.worker.worker_base", "WorkerWrapperBase.__getattr__"),
    ("vllm.v1.worker.worker_base", "WorkerWrapperBase.execute_model"),
)
"""Module and attribute path of everything in vLLM that the plugin calls or replaces."""


def supported(version: str) -> bool:
    """Return whether this version of vLLM is supported. One without numbers, as of a bare checkout, passes."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3])
    return not numbers or OLDEST <= numbers < BEYOND


def missing() -> list[str]:
    """Return the missing entries of :data:`SEAM`. Imports only modules that a worker imports anyway."""
    lacks = []
    for module, path in SEAM:
        try:
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError):
            lacks.append(f"{module}.{path}")
    return lacks
