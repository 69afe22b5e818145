"""vLLM's offloader from its Python sources, for machines on which vLLM is not installed.

A GPU machine may have a CUDA build of torch and no vLLM. The offloader needs little of vLLM, so its own files are
imported unmodified, and the few other modules that they import are stood in for.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

VARIABLE = "VLLM_SOURCES"
"""Names the folder that holds vLLM's package: a checkout of its repository, or a ``site-packages``."""
_OFFLOADER = Path("vllm", "model_executor", "offloader")


def offloader_sources() -> Path | None:
    """Return the folder to import vLLM's offloader from; None if vLLM is installed.

    Raises:
        LookupError: vLLM is not installed, and the variable names no folder that holds it.
    """
    named = os.environ.get(VARIABLE, "")
    if named and not Path(named, _OFFLOADER, "prefetch.py").is_file():
        raise LookupError(f"{VARIABLE}={named} has no {_OFFLOADER / 'prefetch.py'}")
    if named:
        return Path(named)
    if importlib.util.find_spec("vllm") is None:
        raise LookupError(f"vLLM is not installed here; set {VARIABLE} to a folder that holds its Python sources")
    return None


def installed() -> Path:
    """Return the folder of the vLLM that is installed, without importing it."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    return Path(vllm.origin).parent


def use_sources(folder: Path) -> None:
    """Import vLLM's offloader from ``folder`` from now on. Only for a process that has not imported vLLM."""
    if "vllm" in sys.modules:
        raise RuntimeError("vLLM is imported already")
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.offloader"):
        package = _stand_in(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
    _stand_in("vllm.envs", VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY=False)
    _stand_in("vllm.logger", init_logger=_logger)
    _stand_in("vllm.utils").__path__ = []
    _stand_in("vllm.utils.platform_utils", is_pin_memory_available=lambda: True)
    _stand_in("vllm.utils.torch_utils", get_dtype_size=_size, direct_register_custom_op=_register)


def _stand_in(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
    return module


def _logger(name: str) -> Any:
    logger: Any = logging.getLogger(name)
    logger.info_once, logger.debug_once = logger.info, logger.debug
    return logger


def _size(dtype: torch.dtype) -> int:
    return dtype.itemsize


_LIBRARY: Any = torch.library.Library("vllm", "FRAGMENT")  # type: ignore[no-untyped-call]
"""Operators are gone when their library is."""


def _register(
    op_name: str, op_func: Callable[..., None], mutates_args: Sequence[str], fake_impl: object = None
) -> None:
    del fake_impl  # of older versions; needed only in compiled code
    schema = torch.library.infer_schema(op_func, mutates_args=mutates_args)
    _LIBRARY.define(op_name + schema)
    _LIBRARY.impl(op_name, op_func, dispatch_key="CompositeExplicitAutograd")
