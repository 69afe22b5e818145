"""The trace contexts of a step's requests, on their way from vLLM's scheduler to the rank's ring.

A client that traces its requests sends a W3C ``traceparent`` header. With ``--otlp-traces-endpoint``, vLLM keeps it
with the request, as the parent of its own span, but does not pass it to the workers. So the scheduler's process adds it
to what the workers receive about each new request.

All processes of vLLM import this module, so importing it loads neither torch nor the runtime.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from swtrace.trace.request_link import RequestLink
from swtrace.trace.schema import MOST_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable

_LINK = "swtrace_link"
"""Attribute of ``NewRequestData`` with the request's :class:`~swtrace.trace.request_link.RequestLink`."""


def carrying(from_request: Callable[..., Any]) -> classmethod[Any, Any, Any]:
    """Return a ``NewRequestData.from_request`` whose results carry the request's trace context.

    Args:
        from_request: The original, bound to its class.
    """

    @functools.wraps(from_request)
    def carrying_from_request(_cls: type, request: Any, *args: Any, **kwargs: Any) -> Any:
        data = from_request(request, *args, **kwargs)
        link = RequestLink.of_traceparent((getattr(request, "trace_headers", None) or {}).get("traceparent"))
        if link is not None:
            setattr(data, _LINK, link)
        return data

    return classmethod(carrying_from_request)


class RequestTraces:
    """The trace contexts of the requests that a worker is running."""

    def __init__(self) -> None:
        """Begin without requests."""
        self._links: dict[str, RequestLink] = {}

    def of_step(self, scheduler_output: Any) -> tuple[RequestLink, ...]:
        """Return the trace contexts of requests in a step's batch, at most as many as a step records."""
        for finished in scheduler_output.finished_req_ids:
            self._links.pop(finished, None)
        for request in scheduler_output.scheduled_new_reqs:
            link = getattr(request, _LINK, None)
            if link is not None:
                self._links[request.req_id] = link
        if not self._links:
            return ()
        linked = (self._links.get(request) for request in scheduler_output.num_scheduled_tokens)
        return tuple(link for link in linked if link is not None)[:MOST_REQUESTS]
