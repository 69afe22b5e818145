"""Looks whether an installed vLLM has what the plugin holds on to, and prints what it lacks as a JSON list.

A program of its own (``python -m swtrace.cli.doctor.seam``): importing vLLM takes long, and may fail
in ways that no ``except`` catches.
"""

from __future__ import annotations

import importlib
import json
import sys

SEAM = (
    ("vllm.model_executor.offloader.base", "BaseOffloader.wrap_modules"),
    ("vllm.model_executor.offloader.base", "NoopOffloader"),
    ("vllm.model_executor.offloader.base", "create_offloader"),
    ("vllm.model_executor.offloader.base", "set_offloader"),
    ("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
    ("vllm.config", "get_current_vllm_config"),
    ("vllm.distributed.parallel_state", "GroupCoordinator.make_sibling_device_group"),
    ("vllm.distributed.parallel_state", "get_tp_group"),
    ("vllm.distributed.parallel_state", "get_world_group"),
    ("vllm.v1.worker.worker_base", "WorkerWrapperBase.execute_model"),
)
"""Module and attribute path of everything that the plugin calls or replaces."""


def missing() -> list[str]:
    """Return what of :data:`SEAM` is not there."""
    lacks = []
    for module, path in SEAM:
        try:
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError):
            lacks.append(f"{module}.{path}")
    return lacks


if __name__ == "__main__":
    import vllm  # noqa: F401 (its own failure to import is another finding)

    sys.stdout.write(json.dumps(missing()) + "\n")
