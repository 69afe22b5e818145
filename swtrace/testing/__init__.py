"""Assertions about prefetch in tests: the pytest plugin's fixture and marker, and helpers.

See ``docs/testing.md``. Importing this package loads no heavy dependency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swtrace.testing.metrics import MetricsFacts, read_metrics
    from swtrace.testing.tracing import Tracing

__all__ = ["MetricsFacts", "Tracing", "read_metrics"]

_HOMES = {"MetricsFacts": "metrics", "read_metrics": "metrics", "Tracing": "tracing"}


def __getattr__(name: str) -> Any:
    """Load names on first use, because every pytest run imports the plugin."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"swtrace.testing.{_HOMES[name]}"), name)
