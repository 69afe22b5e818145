"""How to find a model's decoder layers and their linears.

Most models that vLLM implements build their layers through ``make_layers``, which passes them to the offloader. Models
that vLLM runs through its Transformers backend, and a few others, keep their own module list. That list is recognized
by its length: it has as many modules as the model's config has layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from swtrace.vllm.groups import Unobservable

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN = 12
"""Upper bound of the linears that a refusal names."""


def layer_range(vllm_config: Any) -> tuple[int, int]:
    """Return the absolute range of layers that this rank builds, computed as in ``make_layers``."""
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.distributed.utils import get_pp_indices

    stages = get_pp_group()
    start, end = get_pp_indices(total_layers(vllm_config), stages.rank_in_group, stages.world_size)
    return start, end


def total_layers(vllm_config: Any) -> int:
    """Return the number of decoder layers of the model, over all pipeline stages."""
    total: int = vllm_config.model_config.get_total_num_hidden_layers()
    return total


def find_linear(module: nn.Module, path: str) -> Any:
    """Return the vLLM linear at ``path``, or None."""
    from vllm.model_executor.layers.linear import LinearBase

    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, LinearBase) else None


def linear_paths(layer: nn.Module) -> list[str]:
    """Return the paths of a decoder layer's first dozen linears, in the form that ``SWTRACE_SERIES`` takes."""
    from vllm.model_executor.layers.linear import LinearBase

    paths = [name for name, module in layer.named_modules() if isinstance(module, LinearBase)]
    return [*paths[:_SHOWN], "..."] if len(paths) > _SHOWN else paths


def own_layers(model: nn.Module, vllm_config: Any, paths: Iterable[str]) -> list[nn.Module]:
    """Return all decoder layers of a model that keeps its own module list, by absolute index.

    If several lists have the right length, choose the one whose layers have the requested linears: the tower of
    another modality may have as many layers.

    Raises:
        Unobservable: there is no such list, or more than one.
    """
    total = total_layers(vllm_config)
    lists = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total and any(map(linear_paths, module))
    }
    if len(lists) > 1:
        asked = {
            name: layers
            for name, layers in lists.items()
            if any(find_linear(layer, path) is not None for layer in layers for path in paths)
        }
        lists = asked or lists
    if len(lists) != 1:
        found = f"has several ({', '.join(lists)})" if lists else "has none"
        raise Unobservable(
            f"{_how_run(model)}, so swtrace looks for one list of {total} decoder layers, but this model {found}; "
            "unset SWTRACE, or run a model that vLLM builds through make_layers"
        )
    (layers,) = lists.values()
    return layers


def _how_run(model: nn.Module) -> str:
    if type(model).__module__.startswith("vllm.model_executor.models.transformers"):
        return f"vLLM runs this model through its Transformers backend ({type(model).__name__})"
    return f"{type(model).__name__} does not build its decoder layers through vLLM's make_layers"
