"""Waiting where the weight is read, without touching the model's code.

A linear's weight is read in its ``forward``; but adapters (LoRA) call the quant method's ``apply``
directly, and some fused linears bypass it. So both are hooked, and the second wait of a step is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from swtrace.series.interception import Interception

if TYPE_CHECKING:
    from torch import nn

FORWARD = "forward"
APPLY = "apply"


class WaitHooks:
    """Calls ``wait(layer_idx)`` before each hooked layer reads its weight."""

    def __init__(self, wait: Callable[[int], None]) -> None:
        self._wait = wait
        self._removals: list[Callable[[], None]] = []

    def add(self, layer_idx: int, layer: nn.Module) -> None:
        """Hook a layer."""
        wait = self._wait
        forward = layer.forward

        def waiting_forward(*args: Any, **kwargs: Any) -> Any:
            wait(layer_idx)
            return forward(*args, **kwargs)

        shadowed = vars(layer).get(FORWARD)
        layer.forward = waiting_forward

        def restore() -> None:
            if shadowed is None:
                del layer.forward
            else:
                layer.forward = shadowed

        self._removals.append(restore)
        quant_method = getattr(layer, "quant_method", None)
        if callable(getattr(quant_method, APPLY, None)):
            self._hook_apply(layer_idx, layer, quant_method)

    def _hook_apply(self, layer_idx: int, layer: nn.Module, quant_method: Any) -> None:
        wait = self._wait

        def waiting_apply(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            wait(layer_idx)
            return interception.original(layer, *args, **kwargs)

        interception = Interception.install(quant_method, APPLY, layer, waiting_apply)
        self._removals.append(lambda: interception.remove(layer))

    def remove(self) -> None:
        """Take all hooks back."""
        while self._removals:
            self._removals.pop()()
