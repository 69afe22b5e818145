"""Records in, facts out: stall, slack, transfer, skew, efficiency. Pure; needs numpy and :mod:`swtrace.trace`."""

from __future__ import annotations

from swtrace.ledger.ledger import Ledger

__all__ = ["Ledger"]
