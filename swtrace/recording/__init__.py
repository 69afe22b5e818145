"""Recordings: everything that a set of ranks wrote, in one file that can be read again at any time.

A recording holds the input of a ledger, call by call. A ledger that reads it therefore computes exactly the
same facts. :mod:`~swtrace.recording.format` defines the bytes.
"""

from __future__ import annotations

from swtrace.recording.reader import Recording

__all__ = ["Recording"]
