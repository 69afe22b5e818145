"""Who else holds a layer's tensors, or the memory that they lie in.

A window holds one layer after the other, so whoever reads a weight without its module would read another layer's.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from types import FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING

import torch

from swtrace.errors import SwtraceError
from swtrace.series.payload import payload_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

TABLES = ("_parameters", "_buffers")
"""Where a module keeps its own tensors, by name."""
_CLOSED = (torch.nn.Module, torch.optim.Optimizer, type, ModuleType, FrameType)
"""What a search for tensors does not look into."""
_DEPTH = 7
"""How far it goes: a forward hook's tensor is the fifth object from the table of hooks on."""


def living_modules() -> list[nn.Module]:
    """Return every module of this process, whoever holds it.

    The garbage collector also knows tuples that other threads are still building, and building one fails while
    anything else refers to it. So its objects are never kept: their types are taken within one call of C code, in
    which no other thread runs, and then only what refers to a module's type is asked for, as every instance does.
    What was frozen (:func:`gc.freeze`) it would not know, so nothing stays frozen.
    """
    gc.unfreeze()
    kinds = {id(kind): kind for kind in _kinds_of(torch.nn.Module)}
    alive = set(map(id, map(type, itertools.chain.from_iterable(map(gc.get_objects, (None,))))))
    referrers = gc.get_referrers(*(kind for number, kind in kinds.items() if number in alive))
    return [one for one in referrers if issubclass(type(one), torch.nn.Module)]


def _kinds_of(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = type.__subclasses__(kind)
    for subclass in subclasses:
        yield from _kinds_of(subclass)


def held_tensors(module: nn.Module, seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a module holds, each with the name of the parameter, buffer or attribute.

    An attribute holds what its containers, objects, closures, partial calls and hooks hold, a few levels deep: so
    modules hide ties from torch. Other modules and optimizers speak for themselves.

    Args:
        module: the holder.
        seen: numbers of objects that need no second look; those looked at are added.
    """
    attributes = vars(module)
    for table in TABLES:
        tensors = attributes.get(table) or {}
        # Not asked for what may be read now; torch.jit's modules have another kind of table.
        for name, tensor in dict.items(tensors) if isinstance(tensors, dict) else tensors.items():
            if tensor is not None:
                yield name, tensor
    seen = set() if seen is None else seen
    for name, value in attributes.items():
        if name not in TABLES:
            for tensor in _reached(value, seen):
                yield name, tensor


def _reached(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors that an object leads to, without running any code of its own."""
    objects = [value]
    for _ in range(_DEPTH):
        further: list[object] = []
        for one in objects:
            if issubclass(type(one), torch.Tensor):
                yield one  # type: ignore[misc]
            elif id(one) not in seen and gc.is_tracked(one) and not issubclass(type(one), _CLOSED):
                seen.add(id(one))
                if not type(one).__module__.startswith("swtrace."):
                    further += _referents(one)
        objects = further


def _referents(one: object) -> Sequence[object]:
    if isinstance(one, FunctionType):  # not its globals
        return one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)
    return gc.get_referents(one)


def storage_of(tensor: Tensor) -> int:
    """Return a number that tensors in the same memory share, or 0 if it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (NotImplementedError, RuntimeError, SwtraceError):
        return 0


def held_by_others(tensors: Collection[Tensor]) -> list[torch.UntypedStorage]:
    """Return the storages of tensors that other tensors, too, lie in."""
    storages = {}
    users: Counter[int] = Counter()
    for tensor in {id(one): one for own in tensors for one in (own, own._base) if one is not None}.values():  # noqa: SLF001
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # noqa: SLF001
        users[storage._cdata] += 1  # noqa: SLF001
    # One more: what Python has just been handed.
    return [storages[key] for key, count in users.items() if torch._C._storage_Use_Count(key) > count + 1]  # noqa: SLF001


def referred_to_by_others(module: nn.Module) -> bool:
    """Return whether Python objects refer to a module's tensors that are not the module's own."""
    # How many references Python counts where there are no others depends on its version: see what it counts here.
    # (Not a linear's: its initial values would be drawn from the caller's random numbers.)
    fresh = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(1, device="cpu"), requires_grad=False)])
    alone = _most_references(fresh)
    return _most_references(module) > alone


def _most_references(module: nn.Module) -> int:
    return max(map(sys.getrefcount, payload_tensors(module).values()), default=0)
