"""Waiting where the weight is read, without touching the model's code.

A linear's weight is read in its ``forward``. But adapters (LoRA) call the quant method's ``apply``
directly, and some fused linears bypass it. So both are hooked; the second wait of a step is free.

Code that runs before ``forward`` (a pre-hook that makes the weight) or never calls it (a parent that reads
``out_proj.weight``) waits through :mod:`swtrace.series.tensor_table`.

The hooks outlive the series, so that using a linear after ``close`` is an error.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.utils.parametrize import is_parametrized

from swtrace.errors import OrderError
from swtrace.series import operations
from swtrace.series.interception import Interception
from swtrace.series.operations import TRACED, records_operations, run_outside
from swtrace.series.payload import own_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.series import Series

FORWARD = "forward"
_LINEAR_FORWARD = nn.Linear.forward
_BEFORE_SCRIPTING = "__prepare_scriptable__"
"""The attribute that torch.jit.script requests from a module before it reads the module's code."""
_BEFORE_COPYING = "__getstate__"
"""The method that copy and pickle call on an object."""
APPLY = "apply"


class WaitingLayer:
    """Replaces one layer's ``forward`` with one that waits first."""

    def __init__(self, series: Series, layer_idx: int, layer: nn.Module) -> None:
        self._series: Series | None = series
        self._layer_idx = layer_idx
        self._layer = layer
        self._has_buffers = next(layer.buffers(), None) is not None
        """Whether the layer has buffers, which its forward may write to."""
        self._shadowed: Callable[..., Any] | None = vars(layer).get(FORWARD)
        layer.forward = self._hook = self.forward
        vars(layer).update({_BEFORE_SCRIPTING: self._refuse_script, _BEFORE_COPYING: self._refuse_copy})
        self._interception: Interception | None = None
        self._plain = False
        """Whether the forward, if it is ``nn.Linear``'s, reads the weight only together with the activation."""
        self._shown = False
        """Whether reading the weight as an attribute waits for it, even in compiled code."""
        self._weight: Any = None
        self._bias: Any = None
        """Both are what ``nn.Linear``'s forward reads."""
        self._read_by_apply: SimpleNamespace | None = None
        """What the quant method reads of the layer in compiled code, where :attr:`_through_apply` is set."""
        self._through_apply: Any = None
        """The forward of the layer's class, if it is one of vLLM's that reads a weight only through ``apply``."""
        self._handles = [
            layer.register_load_state_dict_pre_hook(self._before_loading),  # type: ignore[no-untyped-call]
        ]
        quant_method = getattr(layer, "quant_method", None)
        if callable(getattr(quant_method, APPLY, None)):
            self._interception = Interception.install(quant_method, APPLY, layer, self.apply)

    @property
    def of_a_series(self) -> bool:
        """Whether its series has not ended."""
        return self._series is not None and not self._series.closed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Wait, then run the layer's own forward."""
        series = self._series
        if series is None:
            return self._forward(*args, **kwargs)
        if is_compiling():
            return self._forward_in_graph(series, args, kwargs)
        if records_operations():
            self._refuse(TRACED)
        series.wait(self._layer_idx)
        result = self._forward(*args, **kwargs)
        if self._has_buffers:
            series.require_unwritten(self._layer_idx)
        if torch.is_grad_enabled():
            for tensor in _tensors(result):
                if tensor.requires_grad:
                    tensor.register_hook(self._refuse_backward)  # type: ignore[no-untyped-call]
        return result

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward; its class may have changed since it was registered."""
        if self._shadowed is not None:
            return self._shadowed(*args, **kwargs)
        layer: Any = self._layer
        return type(layer).forward(layer, *args, **kwargs)

    def _forward_in_graph(self, series: Series, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the wait and the layer's own forward to the traced graph, or break the graph for them."""
        if not self._fits_in_graph(args, kwargs):
            return self._run_outside(*args, **kwargs)
        if type(self._layer).forward is not _LINEAR_FORWARD:
            return self._forward(*args, **kwargs)  # which calls `apply`
        x = args[0] if args else kwargs["input"]
        return self._multiply_in_graph(series, x, lambda x: nn.functional.linear(x, self._weight, self._bias))

    def _multiply_in_graph(self, series: Series, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the wait and then the product of ``x`` and the weight to the traced graph."""
        x = x.clone()  # the graph claims to write to this tensor; the caller's memory may be read-only or shared
        self._trace_wait(series, (x,), {})
        result = multiply(x)
        operations.follow(result, series.order_token)
        return result

    def _fits_in_graph(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether a compiler keeps this forward behind its wait, since it reads weight and activation together.

        A custom forward, a parametrization, a pre-hook or autocast may compute with the weight alone, and nothing
        ties that to the wait. With gradients, the backward would be part of the graph.
        """
        forward: Any = type(self._layer).forward
        if forward is self._through_apply:
            known = getattr(self._layer.quant_method, APPLY) is self._interception
        else:
            known = forward is _LINEAR_FORWARD
        if not (known and self._plain):
            return False
        floats = list(_tensors((*args, *kwargs.values())))
        if any(torch.is_autocast_enabled(tensor.device.type) for tensor in floats):
            return False
        tensors = (*floats, *self._layer.parameters())
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))

    def _run_outside(self, *args: Any, **kwargs: Any) -> Any:
        """Run eagerly, between two graphs."""
        return self.forward(*args, **kwargs)

    def apply(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Wait, then let the quant method apply the layer's weights."""
        series, interception = self._series, self._interception
        if series is not None:
            if not is_compiling():
                series.wait(self._layer_idx)
            elif args and self._through_apply is not None and self._fits_in_graph(args, kwargs):
                multiply = functools.partial(interception.original, self._read_by_apply)  # type: ignore[union-attr]
                return self._multiply_in_graph(series, args[0], lambda x: multiply(x, *args[1:], **kwargs))
            elif not self._shown:
                self._trace_wait(series, args, kwargs)
        return interception.original(layer, *args, **kwargs)  # type: ignore[union-attr]

    def look_at_forward(self, *, shown: bool) -> None:
        """Find out what the forward reads, once the layer is in its place.

        Args:
            shown: whether reading the layer's tensors as attributes waits for them.
        """
        layer = self._layer
        tables = vars(layer)["_parameters"]
        self._weight, self._bias = (dict.get(tables, name) for name in ("weight", "bias"))
        hooked = bool(layer._forward_pre_hooks)  # noqa: SLF001 (there is no public way)
        self._plain = not (self._shadowed is not None or hooked or is_parametrized(layer)) and self._weight is not None
        if self._bias is None and is_unquantized(layer) and reads_through_apply(layer):
            self._through_apply = type(layer).forward
            self._read_by_apply = SimpleNamespace(**{**vars(layer), "weight": self._weight})
        self._shown = shown
        if hooked and not shown:
            self._handles.append(layer.register_forward_pre_hook(self.before_forward, prepend=True))

    def before_forward(self, _layer: nn.Module, _args: tuple[Any, ...]) -> None:
        """Wait before the other pre-hooks, which may make the weight that ``forward`` reads."""
        if self._series is not None:
            self._wait_outside(self._series)

    def _wait_outside(self, series: Series) -> None:
        """Wait eagerly, between two graphs."""
        series.wait(self._layer_idx)

    def release(self) -> None:
        """Restore the layer; if its forward was wrapped since, only pass calls on."""
        self._series = None
        if vars(self._layer).get(FORWARD) is self._hook:
            if self._shadowed is None:
                del self._layer.forward
            else:
                self._layer.forward = self._shadowed
        for method in (_BEFORE_SCRIPTING, _BEFORE_COPYING):
            vars(self._layer).pop(method, None)
        if self._interception is not None:
            self._interception.remove(self._layer)
        while self._handles:
            self._handles.pop().remove()

    def _trace_wait(self, series: Series, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add a wait operator to the graph that is being traced."""
        if torch.compiler.is_exporting():
            self._refuse(
                "exported: the program could not reach and wait elsewhere; export the model before it is registered"
            )
        for activation in _tensors((*args, *kwargs.values())):
            operations.follow(activation, series.order_token)
            operations.wait(activation, series.number, self._layer_idx)
            return
        self._refuse("compiled, but called without a floating-point tensor to order its wait with")

    def _before_loading(self, module: nn.Module, values: dict[str, Any], prefix: str, *_args: Any) -> None:
        series = self._series
        if series is None or series.closed or not series.post_processed:
            return
        if any(prefix + name in values for name in own_tensors(module)):
            self._refuse("load_state_dict() called after post-processing; load the weights before it")

    def _refuse_script(self) -> NoReturn:
        self._refuse(TRACED)

    def _refuse_backward(self, _gradient: Tensor) -> NoReturn:
        self._refuse(
            "backward: its window may hold another layer by now; a series serves inference only: "
            "run the model under torch.no_grad()"
        )

    def _refuse(self, problem: str) -> NoReturn:
        where = f"{self._series.where}, " if self._series is not None else ""
        raise OrderError(f"{where}layer {self._layer_idx}: {problem}")

    def __deepcopy__(self, _memo: dict[int, Any]) -> NoReturn:
        """Refuse, because a copy of the layer would run this one's forward."""
        self._refuse_copy()

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        """Refuse, as in :meth:`__deepcopy__`."""
        self._refuse_copy()

    def _refuse_copy(self) -> NoReturn:
        self._refuse("cannot be copied or pickled; copy the model before it is registered")


def reads_through_apply(layer: nn.Module) -> bool:
    """Return whether this is a linear of vLLM whose forward reads its weight only through its quant method."""
    linears = _vllm_linears()
    if linears is None:
        return False
    plain = (linears.ReplicatedLinear, linears.ColumnParallelLinear, linears.RowParallelLinear)
    return any(type(layer).forward is one.forward for one in plain)


def is_unquantized(layer: nn.Module) -> bool:
    """Return whether this is a linear of vLLM whose quant method only multiplies the activation by the weight."""
    linears = _vllm_linears()
    return linears is not None and type(getattr(layer, "quant_method", None)) is linears.UnquantizedLinearMethod


def _vllm_linears() -> Any:
    """Return vLLM's module of linears; None where it is not loaded, so that no layer can be one of them."""
    return sys.modules.get("vllm.model_executor.layers.linear")


def in_a_series(module: nn.Module) -> bool:
    """Return whether a module belongs to a series that has not ended."""
    hook = _hook_of(module)
    return hook is not None and hook.of_a_series


def leave_ended_series(module: nn.Module) -> None:
    """Remove the hooks of an ended series from a module."""
    hook = _hook_of(module)
    if hook is not None and not hook.of_a_series:
        hook.release()


def _hook_of(module: nn.Module) -> WaitingLayer | None:
    hook = getattr(vars(module).get(FORWARD), "__self__", None)
    return hook if isinstance(hook, WaitingLayer) else None


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in arguments or results, at any depth."""
    if isinstance(values, torch.Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)


_BETWEEN_GRAPHS = (
    "swtrace: this linear's forward may compute with its weight alone (a forward of its own, a parametrization, a "
    "pre-hook, autocast) or keep it for a backward, so it must wait and run outside the graph; compile without "
    "fullgraph=True to allow that"
)
for _method in (WaitingLayer._run_outside, WaitingLayer._wait_outside):  # noqa: SLF001
    run_outside(_method, _BETWEEN_GRAPHS)
