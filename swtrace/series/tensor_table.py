"""Controls what other code sees when it reads a shared layer's tensors.

``module.weight`` is a look-up in ``module._parameters``. In a running series that dict is a :class:`TensorTable`,
which knows whether this layer's weight is in its window now:

- In a step that has reached the layer, every read of the tensor waits first: in ``forward``, in a pre-hook, or in a
  parent module that computes with ``out_proj.weight``.
- At any other time, a read of a tensor in a window returns an :class:`AbsentTensor`. It has a shape, a dtype and a
  device, but no values. Reading or writing it is an error that names series, layer and rank.

So loops over ``parameters()`` that look at shapes still work. ``model.double()`` and ``copy.deepcopy(model)`` are
refused.

Code that ``torch.compile`` traces reads the dict without calling the table's methods, but it does call properties. So
the module gets a class whose attributes are properties that read the table, outside the graph. Only the forward of a
plain linear needs no look-up: its wait is an operator in the graph (:mod:`swtrace.series.waiting`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, ItemsView, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from swtrace.errors import OrderError, StaleWindowError
from swtrace.series.operations import TRACED, records_operations, run_outside
from swtrace.series.references import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swtrace.series.circle import Circle
    from swtrace.series.layer import SeriesLayer


class AbsentTensor(Tensor):
    """Stands for a tensor whose window holds other bytes, or none yet. Has a shape, but values only in its turn."""

    _is_param: bool
    """Makes ``isinstance(tensor, nn.Parameter)`` true."""
    _absence: str
    """Why it has no values."""
    _tensor: weakref.ref[Tensor]
    """The tensor that it stands for."""
    _look_up: Callable[[], Tensor] | None
    """Returns that tensor if it may be read now, otherwise another absent one."""

    @staticmethod
    def __new__(
        cls: type[Self],
        tensor: Tensor,
        reason: str,
        look_up: Callable[[], Tensor] | None = None,
        *,
        data: bool = False,
    ) -> Self:
        """Stand for ``tensor``, or for its ``data``; a read out of turn is an error with ``reason``."""
        absent: Self = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls,
            tensor.shape,
            strides=tensor.stride(),
            dtype=tensor.dtype,
            device=tensor.device,
            requires_grad=tensor.requires_grad and not data,
        )
        vars(absent).update(vars(tensor))
        absent._tensor = weakref.ref(tensor)
        absent._absence = reason
        absent._look_up = look_up
        absent._is_param = isinstance(tensor, nn.Parameter) and not data
        return absent

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with the values, or refuse."""
        if operation is torch.ops.aten.detach.default:
            return args[0].data
        return operation(*_with_values(args), **_with_values(kwargs or {}))

    @property
    def data(self) -> Tensor:
        """The same absent tensor, without gradients."""
        return AbsentTensor(self._real(), self._absence, self._look_up, data=True)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, AbsentTensor) or value._real() is not self._real():  # noqa: SLF001 (its own kind)
            self._refuse()

    def _real(self) -> Tensor:
        tensor = self._tensor()
        if tensor is None:
            self._refuse()
        return tensor

    def _value(self) -> Tensor:
        """Return the tensor that this stands for, after waiting for it if its turn has come."""
        found = self._look_up() if self._look_up is not None else self
        if isinstance(found, AbsentTensor):
            raise StaleWindowError(found._absence)  # noqa: SLF001 (its own kind)
        return found

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise StaleWindowError(self._absence)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """Set it on the tensor that this stands for."""
        self._real().requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory that will hold the values, for code that adds up memory."""
        return self._real().untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        """Return the values."""
        return self._value().detach().numpy(force=force)

    def tolist(self) -> Any:
        """Return the values."""
        return self._value().tolist()

    def data_ptr(self) -> int:
        """Return the address of the values."""
        return self._value().data_ptr()

    share_memory_ = __deepcopy__ = __reduce_ex__ = __array__ = __dlpack__ = _refuse

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return shape, dtype and the reason why there are no values."""
        return f"AbsentTensor({list(self.shape)}, {self.dtype}; {self._absence})"


def _with_values(arguments: Any) -> Any:
    """Return arguments with absent tensors replaced by the tensors that they stand for."""
    if isinstance(arguments, AbsentTensor):
        return arguments._value()  # noqa: SLF001 (its own kind)
    if isinstance(arguments, dict):
        return {name: _with_values(value) for name, value in arguments.items()}
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(map(_with_values, arguments))
    return arguments


class TensorTable(dict[str, Any]):
    """A module's parameters or buffers, of which some belong to a layer of a running series."""

    def __init__(self, table: dict[str, Any], shared: frozenset[str], layer: SeriesLayer, circle: Circle[Any]) -> None:
        super().__init__(table)
        self._shared = shared
        self._layer = layer
        self._circle = circle

    def __getitem__(self, name: str) -> Any:
        """Return the same as :meth:`look_up`; a compiler gets the tensor itself."""
        return dict.__getitem__(self, name) if is_compiling() else self.look_up(name)

    def look_up(self, name: str) -> Any:
        """Return the tensor, after waiting for it if its turn has come, or an absent one if it may not be read now."""
        tensor = dict.__getitem__(self, name)
        if name not in self._shared:
            return tensor
        if records_operations():
            raise OrderError(f"{self._circle.describe(self._layer)}: {name} is {TRACED}")
        if not self._circle.lets_read(self._layer):
            return self._absent(name, tensor)
        if torch.is_grad_enabled():
            self._layer.in_autograd = True
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Return the names; because this is Python, ``dict(table)`` and ``{**table}`` do not bypass look-ups."""
        return super().__iter__()

    def copy(self) -> dict[str, Any]:
        """Return a dict of the tensors as :meth:`look_up` returns them."""
        return dict(self)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the same as :meth:`look_up`, or ``default``."""
        if name in self:
            return self[name]
        return default

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return all tensors, without waiting."""
        return {name: self._shown(name, tensor) for name, tensor in dict.items(self)}.items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return all tensors, without waiting."""
        return dict(self.items()).values()

    def _shown(self, name: str, tensor: Any) -> Any:
        if is_compiling() or name not in self._shared or self._circle.holds(self._layer):
            return tensor
        return self._absent(name, tensor)

    def _absent(self, name: str, tensor: Tensor) -> AbsentTensor:
        reason = f"{self._circle.describe(self._layer)}: {name} {self._circle.absence(self._layer)}"
        return AbsentTensor(tensor, reason, functools.partial(self.look_up, name))

    def __setitem__(self, name: str, tensor: Any) -> None:
        """Set a tensor that is not part of the series."""
        self._refuse_shared((name,))
        super().__setitem__(name, tensor)

    def __delitem__(self, name: str) -> None:
        """Remove a tensor that is not part of the series."""
        self._refuse_shared((name,))
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a tensor that is not part of the series."""
        self._refuse_shared((name,))
        return super().pop(name, *default)

    def update(self, *others: Any, **tensors: Any) -> None:
        """Set tensors that are not part of the series."""
        more = dict(*others, **tensors)
        self._refuse_shared(more)
        super().update(more)

    def _refuse_shared(self, names: Iterable[str]) -> None:
        for name in self._shared.intersection(names):
            if self._circle.closed:
                self._shared -= {name}  # the series has ended, so the model may be loaded again
            else:
                raise OrderError(
                    f"{self._circle.describe(self._layer)}: {name} cannot be replaced or deleted in a running series; "
                    f"do it before post-processing"
                )

    def __deepcopy__(self, _memo: Any) -> NoReturn:
        """Refuse, because a copy would keep the bytes of an arbitrary layer."""
        raise OrderError(
            f"{self._circle.describe(self._layer)}: cannot be copied or pickled in a running series; "
            f"copy or save the model before it is registered"
        )

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        """Refuse, as in :meth:`__deepcopy__`."""
        self.__deepcopy__(None)


def watch(layer: SeriesLayer, circle: Circle[Any]) -> None:
    """Replace the dicts that hold a layer's tensors with tables."""
    shared = {id(tensor) for tensor in layer.tensors}
    for module in layer.module.modules():
        for table_name in TABLES:
            table = vars(module)[table_name]
            names = frozenset(name for name, tensor in table.items() if id(tensor) in shared)
            if names:
                vars(module)[table_name] = TensorTable(table, names, layer, circle)
                module.__class__ = _looking_up(type(module), names, table_name)  # type: ignore[arg-type]


def unwatch(module: nn.Module) -> None:
    """Restore the original classes of a layer's module and its submodules."""
    for part in module.modules():
        while (kind := vars(type(part)).get(_OWN_CLASS)) is not None:
            part.__class__ = kind


_OWN_CLASS = "_swtrace_own_class"


@functools.cache
def _looking_up(kind: Any, names: frozenset[str], table_name: str) -> Any:
    """Return a subclass whose attributes of these names are looked up in a table, even by compiled code.

    A compiler reads a module's parameters without the table's methods, but runs properties. (torch parametrizes
    modules in the same way.)
    """
    known = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, _OWN_CLASS: kind}
    return type(kind.__name__, (kind,), {**known, **{name: _property(name, table_name) for name in names}})


def _property(name: str, table_name: str) -> property:
    def look_up(module: nn.Module) -> Any:
        if is_compiling():
            return _look_up_outside(module, name, table_name)
        return vars(module)[table_name].look_up(name)

    return property(look_up)


def _look_up_outside(module: nn.Module, name: str, table_name: str) -> Any:
    """Look a tensor up eagerly, between two graphs."""
    return vars(module)[table_name].look_up(name)


_OUTSIDE = (
    "swtrace: a shared weight that is read without calling its linear must be waited for outside the graph; "
    "compile without fullgraph=True to allow that"
)
for _function in (_look_up_outside, AbsentTensor.__new__, AbsentTensor.__torch_dispatch__.__func__):  # type: ignore[attr-defined]
    run_outside(_function, _OUTSIDE)
