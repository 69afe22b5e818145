"""Waiting where the weight is read, without touching the model's code.

A linear's weight is read in its ``forward``; but adapters (LoRA) call the quant method's ``apply``
directly, and some fused linears bypass it. So both are hooked, and the second wait of a step is free.

What runs before ``forward`` (a pre-hook that makes the weight) and what never calls it (a parent that reads
``out_proj.weight``) is served by :mod:`swtrace.series.tables`, and, because compiled code does not pass there, by a
pre-hook of our own in front of any other.

The hooks outlive the series: a linear that is used after ``close`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.utils.parametrize import is_parametrized

from swtrace.errors import OrderError
from swtrace.series import operations
from swtrace.series.graphs import TRACED, records_operations, run_outside
from swtrace.series.interception import Interception

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.series import Series

FORWARD = "forward"
_BEFORE_SCRIPTING = "__prepare_scriptable__"
"""What torch.jit.script asks a module for, before it reads its code."""
APPLY = "apply"


class WaitingLayer:
    """Stands in for one layer's ``forward``, and waits first."""

    def __init__(self, series: Series, layer_idx: int, layer: nn.Module) -> None:
        self._series: Series | None = series
        self._layer_idx = layer_idx
        self._layer = layer
        self._has_buffers = next(layer.buffers(), None) is not None
        """Forward may keep something in them."""
        self._shadowed = vars(layer).get(FORWARD)
        self._forward: Callable[..., Any] = layer.forward
        layer.forward = self._hook = self.forward
        vars(layer)[_BEFORE_SCRIPTING] = self._refuse_script
        self._interception: Interception | None = None
        self._plain = False
        """Forward reads the weight only together with the activation."""
        self._pre_hooks = 0
        """How many the layer had when its series began to run."""
        self._handles = [
            layer.register_load_state_dict_pre_hook(self._before_loading),  # type: ignore[no-untyped-call]
            layer.register_state_dict_pre_hook(self._before_saving),  # type: ignore[no-untyped-call]
        ]
        quant_method = getattr(layer, "quant_method", None)
        if callable(getattr(quant_method, APPLY, None)):
            self._interception = Interception.install(quant_method, APPLY, layer, self.apply)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Wait, then run the layer's own forward."""
        series = self._series
        if series is None:
            return self._forward(*args, **kwargs)
        if is_compiling():
            return self._forward_in_graph(series, args, kwargs)
        if records_operations():
            self._refuse(series, TRACED)
        series.wait(self._layer_idx)
        result = self._forward(*args, **kwargs)
        if self._has_buffers:
            series.require_unwritten(self._layer_idx)
        if torch.is_grad_enabled():
            for tensor in _tensors(result):
                if tensor.requires_grad:
                    tensor.register_hook(self._refuse_backward)  # type: ignore[no-untyped-call]
        return result

    def _forward_in_graph(self, series: Series, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put the wait and the layer's own forward into the graph that is being traced, or end the graph for them."""
        if len(self._layer._forward_pre_hooks) != self._pre_hooks:  # noqa: SLF001 (there is no public way)
            self._refuse(series, "compiled with a pre-hook that came after post-processing; register it before")
        if not self._belongs_into_a_graph(series, args, kwargs):
            return self._run_outside(*args, **kwargs)
        self._trace_wait(series, args, kwargs)
        result = self._forward(*args, **kwargs)
        for tensor in _tensors(result):
            operations.follow(tensor, series.thread)
        return result

    def _belongs_into_a_graph(self, series: Series, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a compiler keeps this forward behind its wait, because it reads the weight only with the activation.

        A forward of the linear's own, a parametrization, a pre-hook, or autocast may compute with the weight alone, and
        nothing ties that to the wait. (A framework's quant method, which post-processing tries out, is relied on.) With
        gradients, the backward would be part of the graph, too.
        """
        if not self._plain and (self._interception is None or not series.proven):
            return False
        floats = list(_tensors((*args, *kwargs.values())))
        if any(torch.is_autocast_enabled(tensor.device.type) for tensor in floats):
            return False
        tensors = (*floats, *self._layer.parameters())
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))

    def _run_outside(self, *args: Any, **kwargs: Any) -> Any:
        """Run eagerly, between two graphs."""
        return self.forward(*args, **kwargs)

    def _wait_outside(self, series: Series) -> None:
        """Wait eagerly: what follows belongs to another graph."""
        series.wait(self._layer_idx)

    def apply(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Wait, then let the quant method apply the layer's weights."""
        series, interception = self._series, self._interception
        if series is not None:
            if is_compiling():
                self._trace_wait(series, args, kwargs)
            else:
                series.wait(self._layer_idx)
        return interception.original(layer, *args, **kwargs)  # type: ignore[union-attr]

    def before_forward(self, _layer: nn.Module, _args: tuple[Any, ...]) -> None:
        """Wait before other pre-hooks, which may make the weight that ``forward`` reads."""
        if self._series is not None:
            self._wait_outside(self._series)

    def go_before_others(self) -> None:
        """Come before all pre-hooks that the layer has by now, and see what its forward is."""
        hooked = bool(self._layer._forward_pre_hooks)  # noqa: SLF001 (there is no public way)
        own = self._shadowed is not None or type(self._layer).forward is not nn.Linear.forward
        self._plain = not (own or hooked or is_parametrized(self._layer))
        if hooked:
            hook = self._layer.register_forward_pre_hook(self.before_forward, prepend=True)
            self._handles.append(hook)
        self._pre_hooks = len(self._layer._forward_pre_hooks)  # noqa: SLF001

    def release(self) -> None:
        """Leave the layer as it was; where another has wrapped it since, just pass calls on."""
        self._series = None
        if vars(self._layer).get(FORWARD) is self._hook:
            if self._shadowed is None:
                del self._layer.forward
            else:
                self._layer.forward = self._shadowed
        vars(self._layer).pop(_BEFORE_SCRIPTING, None)
        if self._interception is not None:
            self._interception.remove(self._layer)
        while self._handles:
            self._handles.pop().remove()

    def _trace_wait(self, series: Series, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the wait into the graph that is being traced."""
        if torch.compiler.is_exporting():
            self._refuse(series, "exported: the program would not reach and wait elsewhere; export the model first")
        for activation in _tensors((*args, *kwargs.values())):
            operations.follow(activation, series.thread)
            operations.wait(activation, series.number, self._layer_idx)
            return
        self._refuse(series, "compiled, and called without a tensor that its wait could be ordered with")

    def _before_loading(self, *_args: Any) -> None:
        series = self._series
        if series is not None and series.post_processed:
            self._refuse(series, "load_state_dict after post-processing; load the weights before it")

    def _before_saving(self, *_args: Any) -> None:
        series = self._series
        if series is not None and series.post_processed:
            self._refuse(
                series,
                "state_dict of a running series: this rank holds only the layers that it is the source of; "
                "save the weights before the layers are registered",
            )

    def _refuse_script(self) -> NoReturn:
        series = self._series
        where = f"{series.where}, " if series is not None else ""
        raise OrderError(f"{where}layer {self._layer_idx}: {TRACED}")

    def _refuse_backward(self, _gradient: Tensor) -> NoReturn:
        series = self._series
        where = f"{series.where}, layer {self._layer_idx}: " if series is not None else ""
        raise OrderError(
            f"{where}backward: by now its window holds another layer; a series serves inference only, "
            f"run the model under torch.no_grad()"
        )

    def _refuse(self, series: Series, problem: str) -> NoReturn:
        raise OrderError(f"{series.where}, layer {self._layer_idx}: {problem}")

    def __deepcopy__(self, _memo: dict[int, Any]) -> NoReturn:
        """Refuse: a copy of the layer would run this one."""
        self._refuse_copy()

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        """Refuse, as for a deep copy."""
        self._refuse_copy()

    def _refuse_copy(self) -> NoReturn:
        series = self._series
        where = f"{series.where}, " if series is not None else ""
        raise OrderError(f"{where}layer {self._layer_idx}: copied or pickled; copy the model before it is registered")


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors among arguments or results, however deep they lie."""
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
    "pre-hook, autocast), or keep it for a backward, so it runs outside of the graph, where it waits first; without "
    "fullgraph=True it does so by itself"
)
for _method in (WaitingLayer._run_outside, WaitingLayer._wait_outside):  # noqa: SLF001
    run_outside(_method, _BETWEEN_GRAPHS)
