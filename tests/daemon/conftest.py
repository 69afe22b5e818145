"""A run that a daemon reads, and a receiver of the spans that it exports."""

from __future__ import annotations

from tests.support.spanned_run import receiver, run

__all__ = ["receiver", "run"]
