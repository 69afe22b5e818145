"""Insertion of reach and wait into vLLM's modules, and their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

from swtrace.errors import RegistrationError
from swtrace.series.operations import reach, wait
from swtrace.series.waiting import reads_through_apply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

TRIAL_TOKENS = 3
_ABSENT = object()


class Hooks:
    """Reversible replacements of attributes of modules."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def reach_before_forward(self, module: nn.Module, series: tuple[int, ...], layer: int) -> None:
        """Reach for ``layer`` in all ``series`` at the beginning of its forward."""
        forward = module.forward

        def forward_after_reach(*args: Any, **kwargs: Any) -> Any:
            activation = _activation(args, kwargs)
            for one in series:
                reach(activation, one, layer)
            return forward(*args, **kwargs)

        self._replace(module, "forward", forward_after_reach)

    def wait_before_reading(self, linear: Any, series: int, layer: int) -> None:
        """Wait in the linear's forward, and wherever other code applies its weights without calling its forward.

        LoRA calls ``quant_method.apply`` directly, and some fused linears read their weight without it. A second wait
        in a step does nothing. The quant method must belong to this linear alone.
        """
        method = linear.quant_method
        apply: Callable[..., Any] = method.apply

        def apply_after_wait(layer_: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            wait(x, series, layer)
            return apply(layer_, x, *args, **kwargs)

        self._replace(method, "apply", apply_after_wait)
        if reads_through_apply(linear):
            return
        forward = linear.forward

        def forward_after_wait(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            wait(x, series, layer)
            return forward(x, *args, **kwargs)

        self._replace(linear, "forward", forward_after_wait)

    def keep_plain(self, linear: Any) -> None:
        """On CPU, keep the plain Parameter instead of letting vLLM pack a copy for oneDNN.

        vLLM itself does so for some MLA layers from 0.29 on. The quant method must belong to this linear alone.
        """
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        if current_platform.is_cpu() and type(linear.quant_method) is UnquantizedLinearMethod:
            self._replace(linear.quant_method, "process_weights_after_loading", _multiply_plainly)

    def remove(self) -> None:
        """Undo all replacements, the last one first."""
        while self._undo:
            self._undo.pop()()

    def _replace(self, holder: Any, name: str, value: object) -> None:
        before = vars(holder).get(name, _ABSENT)

        def undo() -> None:
            if before is _ABSENT:
                delattr(holder, name)
            else:
                setattr(holder, name, before)

        setattr(holder, name, value)
        self._undo.append(undo)


def _multiply_plainly(linear: Any) -> None:
    linear.cpu_linear = torch.nn.functional.linear


def try_out(linear: Any) -> torch.Tensor:
    """Multiply a fixed input with the linear's weight as its forward does, but without waiting."""
    size = getattr(linear, "input_size_per_partition", None) or linear.input_size
    device = next(_tensors(linear)).device
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():  # noqa: SLF001 (no public API)
        # Kernels use AMX tiles where the CPU has them, but rely on the caller to request them from the system.
        torch.cpu._init_amx()  # noqa: SLF001
    generator = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(TRIAL_TOKENS, size, generator=generator, device="cpu").to(device, linear.params_dtype)
    method = linear.quant_method
    with torch.no_grad():
        result: torch.Tensor = type(method).apply(method, linear, x)
    return result


def read_while_loading(module: nn.Module, linear: Any) -> str:
    """Return which part of a decoder layer derives its own tensors from the linear's weight after loading; else ''.

    MLA's attention does so from ``kv_b_proj``. It would read a window that may hold another layer by then.
    """
    for name, part in module.named_modules():
        if part is linear or not callable(getattr(part, "process_weights_after_loading", None)):
            continue
        for holder in (part, getattr(part, "impl", None)):
            if holder is not None and any(value is linear for value in _attributes(holder)):
                return f"{name} ({type(part).__name__})"
    return ""


def _attributes(holder: Any) -> Iterable[Any]:
    attributes = getattr(holder, "__dict__", {})
    return [*attributes.values(), *attributes.get("_modules", {}).values()]


def _tensors(linear: Any) -> Iterator[torch.Tensor]:
    yield from linear.parameters(recurse=False)
    yield from linear.buffers(recurse=False)


def _activation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states among a decoder layer's arguments. Unlike positions, they are floating point."""
    named = kwargs.get("hidden_states")
    if named is not None:
        return named  # type: ignore[no-any-return]
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise RegistrationError("a decoder layer was called without hidden states; swtrace cannot mark its reach")
