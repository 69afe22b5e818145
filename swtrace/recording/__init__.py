"""Recordings: everything that a set of ranks wrote, in one file, to be read again at any time.

A recording holds what a ledger was fed with, call by call, so that a ledger fed from it states the
same facts to the last digit. :mod:`~swtrace.recording.format` knows the bytes.
"""

from __future__ import annotations

from swtrace.recording.reader import Recording

__all__ = ["Recording"]
