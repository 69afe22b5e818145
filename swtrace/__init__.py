"""Shared-weight series for vLLM, traced: see every broadcast, every wait, every stall."""

from __future__ import annotations

__version__ = "0.1.0"
