"""Giving freed memory back to the system, where freeing alone does not.

glibc keeps freed blocks of a layer's size in its heap, and torch's aligned requests of the same size do
not fit into them again. A rank that freed a layer for every one it kept would grow to the size of all
layers, and stay there.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def return_freed() -> None:
    """Return what is free in this process's heap to the system; does nothing where the C library has no way to."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
