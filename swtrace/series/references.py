"""Finds what else holds a layer's tensors or their memory.

A window holds one layer after the other, so a read of a weight without its module would return another layer's.
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
"""The dicts in which a module keeps its own tensors."""
_CLOSED = (torch.nn.Module, torch.optim.Optimizer, type, ModuleType, FrameType)
"""Types that the search for tensors does not enter."""
_DEPTH = 7
"""Depth of the search. A forward hook's tensor is the fifth object, counted from the table of hooks."""


def living_modules() -> list[nn.Module]:
    """Return every module of this process.

    The garbage collector also knows tuples that other threads are still building, and building one fails while
    anything else refers to it. So its objects are never kept: their types are collected within one call of C code,
    in which no other thread runs. Then only objects that refer to a module's type are requested, as every
    instance does. The collector does not return frozen objects (:func:`gc.freeze`), so everything is unfrozen first.
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

    An attribute holds what its containers, objects, closures, partial calls and hooks hold, a few levels deep, because
    modules hide ties from torch that way. The search does not enter other modules and optimizers.

    Args:
        module: the holder.
        seen: ids of objects that were visited already; newly visited ones are added.
    """
    attributes = vars(module)
    for table in TABLES:
        tensors = attributes.get(table) or {}
        # Without waiting or absent tensors. torch.jit's modules have another kind of table.
        for name, tensor in dict.items(tensors) if isinstance(tensors, dict) else tensors.items():
            if tensor is not None:
                yield name, tensor
    seen = set() if seen is None else seen
    for name, value in attributes.items():
        if name not in TABLES:
            for tensor in _reached(value, seen):
                yield name, tensor


def _reached(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors that an object leads to, without running its code."""
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
    """Return a number that tensors in the same memory share; 0 if the tensor has no memory."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (NotImplementedError, RuntimeError, SwtraceError):
        return 0


def held_by_others(tensors: Collection[Tensor]) -> list[torch.UntypedStorage]:
    """Return the storages of tensors that other tensors use as well."""
    storages = {}
    users: Counter[int] = Counter()
    for tensor in {id(one): one for own in tensors for one in (own, own._base) if one is not None}.values():  # noqa: SLF001
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # noqa: SLF001
        users[storage._cdata] += 1  # noqa: SLF001
    # One more for the Python object that was just made.
    return [storages[key] for key, count in users.items() if torch._C._storage_Use_Count(key) > count + 1]  # noqa: SLF001


def referred_to_by_others(module: nn.Module) -> bool:
    """Return whether other Python objects refer to a module's tensors."""
    # How many references Python counts without others depends on its version, so measure it here.
    # (Not on a linear, whose initial values would use up the caller's random numbers.)
    fresh = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(1, device="cpu"), requires_grad=False)])
    alone = _most_references(fresh)
    return _most_references(module) > alone


def _most_references(module: nn.Module) -> int:
    return max(map(sys.getrefcount, payload_tensors(module).values()), default=0)
