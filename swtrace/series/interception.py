"""Replaces methods of objects that layers share.

One quant method instance may serve many layers, of several series and of none. So a method is
replaced once per instance, by one interception that knows its layers. It passes on the calls for all
other layers, never chains to itself, and removes itself with its last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Substitute = Callable[..., Any]


class Interception:
    """Replaces ``holder.method`` for chosen layers, identified by the first argument."""

    def __init__(self, holder: Any, method: str) -> None:
        self._holder = holder
        self._method = method
        self._own: bool = method in vars(holder)
        self.original: Callable[..., Any] = getattr(holder, method)
        self._substitutes: dict[int, Substitute] = {}
        setattr(holder, method, self)

    @classmethod
    def install(cls, holder: Any, method: str, layer: Any, substitute: Substitute) -> Interception:
        """Call ``substitute(layer, ...)`` instead of ``holder.method(layer, ...)``, until removed."""
        present = getattr(holder, method)
        interception = present if isinstance(present, cls) else cls(holder, method)
        interception.substitute(layer, substitute)
        return interception

    def substitute(self, layer: Any, substitute: Substitute) -> None:
        """Call ``substitute`` for ``layer``."""
        self._substitutes[id(layer)] = substitute

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the layer's substitute, or the original."""
        substitute = self._substitutes.get(id(layer), self.original)
        return substitute(layer, *args, **kwargs)

    def remove(self, layer: Any) -> None:
        """Call the original for ``layer`` again; restore the holder after its last layer."""
        self._substitutes.pop(id(layer), None)
        if self._substitutes or vars(self._holder).get(self._method) is not self:
            return
        if self._own:
            setattr(self._holder, self._method, self.original)
        else:
            delattr(self._holder, self._method)
