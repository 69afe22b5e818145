"""A suite of a user of the plugin."""

from __future__ import annotations

from tests.support.suites import suite

__all__ = ["suite"]
