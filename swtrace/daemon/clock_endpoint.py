"""Answer ``/api/v1/clock``, with as little work as possible around the two readings of the clock.

A reader learns the least from the time that a request waits and is worked on, so the answer says when the request
arrived and what the clock shows last. What remains unknown is the time on the network.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

from swtrace.trace.clocks import now_ns, own_clock

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/api/v1/clock"
_ARRIVED = "arrived_ns"
_DIGITS = 20


class TimedProtocol(H11Protocol):
    """Reads the clock when a request arrives: parsing one takes longer than its way here."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request. Each request has its own copy of the state."""
        self.app_state[_ARRIVED] = now_ns()
        super().data_received(data)


class ClockEndpoint:
    """Answers requests for the clock, and passes on all others. It comes before all middleware that delays an answer.

    It sends the headers first, so that nothing but a short body follows the last reading of the clock.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._clock = own_clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] not in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        arrived_ns = scope.get("state", {}).get(_ARRIVED) or now_ns()
        known = json.dumps({"clock": self._clock, _ARRIVED: arrived_ns, "monotonic_ns": 0})[: -len("0}")].encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % (len(known) + _DIGITS + 1))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"%b%*d}" % (known, _DIGITS, now_ns())})
