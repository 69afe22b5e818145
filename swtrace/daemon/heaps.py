"""glibc's heaps: by default they keep the peak of every thread, which adds up in a daemon with many short streams.

Another C library has neither function, and nothing happens.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_ARENA_MAX = -8
"""The number of this option of ``mallopt``."""


def share_heaps() -> None:
    """Let all threads share two heaps instead of up to eight per core. Call this before threads are started.

    Python's threads rarely allocate at the same time, so this costs nothing. ``MALLOC_ARENA_MAX`` overrides it.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def return_free_memory() -> None:
    """Give memory back to the kernel that was freed between blocks that are still in use. Takes some milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
