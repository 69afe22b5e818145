"""``swtrace plan``: what other settings would cost and save, predicted from what was measured."""

from __future__ import annotations
