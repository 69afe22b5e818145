"""The trace context of a request: what a step's span links to.

Standard library only, because ranks load this module.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class RequestLink(NamedTuple):
    """The span in whose context a request came: the parent of vLLM's own span of the request."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""

    @classmethod
    def of_traceparent(cls, header: object) -> Self | None:
        """Return the context in a W3C ``traceparent`` header; None if it is invalid or its trace is not sampled."""
        match = _TRACEPARENT.fullmatch(header) if isinstance(header, str) else None
        if match is None or not int(match[3], 16) & 1:
            return None
        link = cls(int(match[1], 16), int(match[2], 16))
        return link if all(link) else None
