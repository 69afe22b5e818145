"""The daemon's answer about its clock: true, and read close to the wire."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from swtrace.daemon import clock_endpoint
from swtrace.daemon.clock_endpoint import ClockEndpoint
from swtrace.trace.clocks import clock_offset
from tests.support.daemon_threads import serving
from tests.support.recorded_run import RecordedRun, identity

WORK_NS = 50_000_000


class Busy(ClockEndpoint):
    """Works for a while before it answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer late."""
        await asyncio.sleep(2 * WORK_NS / 1e9)
        await super().__call__(scope, receive, send)


def test_the_clock_is_that_of_the_ranks_of_this_host(client: httpx.Client) -> None:
    """What /api/v1/clock names is what a rank of this process writes into its ring, and it shows this moment."""
    before = time.monotonic_ns()
    document = client.get("/api/v1/clock").json()
    after = time.monotonic_ns()
    written = identity("run", 0)
    assert document.keys() == {"clock", "arrived_ns", "monotonic_ns"}
    assert document["clock"] == replace(written, clock_offset=clock_offset()).clock
    assert before <= document["arrived_ns"] <= document["monotonic_ns"] <= after


def test_the_answer_says_how_long_the_daemon_worked_on_it(run: RecordedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request arrived when its first byte did, not when the application began to answer."""
    monkeypatch.setattr("swtrace.daemon.http_app.ClockEndpoint", Busy)
    with serving(run.directory) as client:
        document = client.get("/api/v1/clock").json()
    assert document["monotonic_ns"] - document["arrived_ns"] > WORK_NS


def test_the_clock_is_read_after_the_headers_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the body follows the reading, so the way back is about as long as the way here."""
    happened: list[str] = []

    def read() -> int:
        happened.append("read")
        return 123

    async def sent(message: Message) -> None:
        happened.append(message["type"])

    async def refuse(*_arguments: object) -> None:
        pytest.fail("the request was passed on")

    async def receive() -> Message:
        return {"type": "http.request"}

    monkeypatch.setattr(clock_endpoint, "now_ns", read)
    scope = {"type": "http", "method": "GET", "path": "/api/v1/clock", "state": {"arrived_ns": 100}}
    asyncio.run(ClockEndpoint(refuse)(scope, receive, sent))
    assert happened == ["http.response.start", "read", "http.response.body"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 405)])
def test_other_methods_do_not_get_the_clock(client: httpx.Client, method: str, status: int) -> None:
    """HEAD has no body, and nothing can be posted."""
    answer = client.request(method, "/api/v1/clock")
    assert (answer.status_code, answer.content[:1] == b"{") == (status, False)
