"""What the rest of the program sees of a shared layer's tensors.

``module.weight`` is a look-up in ``module._parameters``. In a running series that dict is a :class:`TensorTable`,
which knows whether the layer's bytes are there:

- in a step that has reached the layer, whoever reads the tensor waits first, be it ``forward``, a pre-hook, or a
  parent module that computes with ``out_proj.weight``;
- at any other time a tensor that lies in a window is shown as :class:`AbsentTensor`: it has a shape, a dtype and a
  device, and no values. Whoever reads or writes it gets an error that names series, layer and rank.

So loops over ``parameters()`` that look at shapes go on; ``model.double()`` or ``copy.deepcopy(model)`` is refused.
Code that ``torch.compile`` traces does not pass here: its waits are operators in the graph.
"""

from __future__ import annotations

import weakref
from collections.abc import ItemsView, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from swtrace.errors import OrderError, StaleWindowError
from swtrace.series.graphs import TRACED, records_operations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swtrace.series.circle import Circle
    from swtrace.series.layer import SeriesLayer

_TABLES = ("_parameters", "_buffers")


class AbsentTensor(Tensor):
    """Stands for a tensor whose window holds other bytes: has a shape, and no values."""

    _is_param: bool
    """What makes ``isinstance(tensor, nn.Parameter)`` true."""
    _told: str
    """Why it has no values."""
    _tensor: weakref.ref[Tensor]
    """What it stands for."""

    @staticmethod
    def __new__(cls: type[Self], tensor: Tensor, told: str) -> Self:
        """Stand for ``tensor``, and say ``told`` to whoever asks for values."""
        absent: Self = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, tensor.shape, strides=tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        vars(absent).update(vars(tensor))
        absent._tensor = weakref.ref(tensor)
        absent._told = told
        absent._is_param = isinstance(tensor, nn.Parameter)
        return absent

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, _operation: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        """Refuse every operation on values."""
        absent = next(value for value in _flat((args, kwargs)) if isinstance(value, cls))
        absent._refuse()  # noqa: SLF001 (its own)

    @property
    def data(self) -> Tensor:
        """This very tensor."""
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        if value is not self:
            self._refuse()

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise StaleWindowError(self._told)

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory in which the values will be, for whoever adds memory up."""
        tensor = self._tensor()
        if tensor is None:
            self._refuse()
        return tensor.untyped_storage()

    data_ptr = share_memory_ = numpy = tolist = item = _refuse
    __deepcopy__ = __reduce_ex__ = __array__ = __dlpack__ = _refuse

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return what is known of it."""
        return f"AbsentTensor({list(self.shape)}, {self.dtype}; {self._told})"


class TensorTable(dict[str, Any]):
    """A module's parameters or buffers, of which some belong to a layer of a running series."""

    def __init__(self, table: dict[str, Any], shared: frozenset[str], layer: SeriesLayer, circle: Circle) -> None:
        super().__init__(table)
        self._shared = shared
        self._layer = layer
        self._circle = circle

    def __getitem__(self, name: str) -> Any:
        """Return a tensor that may be read now, waiting for it if its turn has come; or one that says it may not."""
        tensor = dict.__getitem__(self, name)
        if is_compiling() or name not in self._shared:
            return tensor
        if records_operations():
            raise OrderError(f"{self._circle.describe(self._layer)}: {name} is {TRACED}")
        if not self._circle.lets_read(self._layer):
            return self._absent(name, tensor)
        if torch.is_grad_enabled():
            self._layer.in_autograd = True
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Return the names; being Python, it keeps ``dict(table)`` and ``{**table}`` from going round look-ups."""
        return super().__iter__()

    def copy(self) -> dict[str, Any]:
        """Return a dict of what may be read now."""
        return dict(self)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the same, or ``default``."""
        if name in self:
            return self[name]
        return default

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return all, without waiting."""
        return {name: self._shown(name, tensor) for name, tensor in dict.items(self)}.items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return all, without waiting."""
        return dict(self.items()).values()

    def _shown(self, name: str, tensor: Any) -> Any:
        if is_compiling() or name not in self._shared or self._circle.holds(self._layer):
            return tensor
        return self._absent(name, tensor)

    def _absent(self, name: str, tensor: Tensor) -> AbsentTensor:
        return AbsentTensor(tensor, f"{self._circle.describe(self._layer)}: {name} {self._circle.absence(self._layer)}")

    def __setitem__(self, name: str, tensor: Any) -> None:
        """Take a tensor that is not of the series."""
        self._keep((name,))
        super().__setitem__(name, tensor)

    def __delitem__(self, name: str) -> None:
        """Drop a tensor that is not of the series."""
        self._keep((name,))
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Drop a tensor that is not of the series."""
        self._keep((name,))
        return super().pop(name, *default)

    def update(self, *others: Any, **tensors: Any) -> None:
        """Take tensors that are not of the series."""
        more = dict(*others, **tensors)
        self._keep(more)
        super().update(more)

    def _keep(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._shared:
                raise OrderError(
                    f"{self._circle.describe(self._layer)}: {name} is replaced or deleted in a running series; "
                    f"do it before post-processing"
                )

    def __deepcopy__(self, _memo: Any) -> NoReturn:
        """Refuse: a copy would have some layer's bytes for ever."""
        raise OrderError(
            f"{self._circle.describe(self._layer)}: copied or pickled in a running series; "
            f"copy or save the model before it is registered"
        )

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        """Refuse, as for a deep copy."""
        self.__deepcopy__(None)


def watch(layer: SeriesLayer, circle: Circle) -> None:
    """Show a layer's tensors through tables from now on."""
    shared = {id(tensor) for tensor in layer.tensors}
    for module in layer.module.modules():
        for attribute in _TABLES:
            table = vars(module)[attribute]
            names = frozenset(name for name, tensor in table.items() if id(tensor) in shared)
            if names:
                vars(module)[attribute] = TensorTable(table, names, layer, circle)


def _flat(values: Any) -> Iterable[Any]:
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        yield values
        return
    for value in values:
        yield from _flat(value)
