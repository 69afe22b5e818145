"""Fixtures of every test that runs ``swtrace`` as a user does."""

from __future__ import annotations

from tests.support.commands import environment, interruptible, rings, start_swtrace, swtrace

__all__ = ["environment", "interruptible", "rings", "start_swtrace", "swtrace"]
