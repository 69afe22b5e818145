"""Count how vLLM's registered architectures build their decoder layers, by reading their sources.

``.venv-vllm/bin/python -m tests.support.vllm.architectures`` prints the counts in docs/deployments.md.
An architecture's source is its module and the modules of models that it imports, and what these import.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

BACKEND = "Transformers backend"
MAKE_LAYERS = "make_layers"
COMPOSED = "composed of another registered model"
OWN_LIST = "a list of their own"
MODELS = "vllm.model_executor.models"
_FURNITURE = frozenset(
    {MODELS, *(f"{MODELS}.{name}" for name in ("utils", "registry", "interfaces", "interfaces_base"))}
)
"""Modules that all models import, and that are not models."""


def count() -> Counter[str]:
    """Return, for each way to build layers, how many registered architectures use it."""
    from vllm.model_executor.models import registry

    return Counter(_way(module) for module, _ in registry._VLLM_MODELS.values())


def _way(module: str) -> str:
    if module == "transformers":
        return BACKEND
    calls: set[str] = set()
    seen: set[str] = set()
    waiting = {module if "." in module else f"{MODELS}.{module}"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        called, imported = _read(name)
        calls |= called
        waiting |= imported - seen - _FURNITURE
    if "make_layers" in calls:
        return MAKE_LAYERS
    return COMPOSED if "init_vllm_registered_model" in calls else OWN_LIST


@cache
def _read(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the functions that a module calls, and the modules of models that it imports."""
    source = _source(module)
    if source is None:
        return frozenset(), frozenset()
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    calls: set[str] = set()
    imports: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package.split(".")[: package.count(".") + 2 - node.level]) if node.level else ""
            name = ".".join(filter(None, (parent, node.module)))
            if name.startswith((MODELS, "vllm.models")):
                imports |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return frozenset(calls), frozenset(imports)


def _source(module: str) -> Path | None:
    import vllm

    vllm_module: Any = vllm
    path = Path(vllm_module.__file__).parents[1].joinpath(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()), None)


if __name__ == "__main__":
    for way, number in count().most_common():
        sys.stdout.write(f"{number:4} {way}\n")
