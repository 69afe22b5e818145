"""Turn records into facts: stall, slack, transfer, skew, efficiency. Needs only numpy and :mod:`swtrace.trace`."""

from __future__ import annotations

from swtrace.ledger.ledger import Ledger

__all__ = ["Ledger"]
