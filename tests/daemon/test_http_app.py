"""The daemon's endpoints: each is linked, and answers in a format and a compression that the client accepts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from prometheus_client.exposition import choose_encoder
from starlette.types import Message

from swtrace.daemon import http_app
from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.http_app import KEPT_EXPOSITIONS, _Handlers
from swtrace.daemon.observer import Observer
from swtrace.daemon.server import streams
from swtrace.observing import HostRings
from swtrace.spans.delivery import NoSpans
from tests.support.daemon_threads import serving
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun


def test_exposition_is_compressed_when_asked(run: RecordedRun) -> None:
    """A scraper that accepts gzip gets it; one that does not, does not."""
    with serving(run.directory) as client:
        assert client.get("/metrics").headers["content-encoding"] == "gzip"
        plain = client.get("/metrics", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    ("header", "compressed"),
    [
        ("gzip", True),
        ("gzip;q=0.1", True),
        ("deflate, gzip;q=1.0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, identity", False),
        ("identity, GZIP;Q=0", False),
        ("gzip;q=0, *", False),
    ],
)
def test_a_refused_compression_is_not_used(run: RecordedRun, header: str, *, compressed: bool) -> None:
    """Gzip is sent to clients that accept it, and not if its weight is 0."""
    with serving(run.directory) as client:
        response = client.get("/metrics", headers={"accept-encoding": header})
    assert (response.headers.get("content-encoding") == "gzip") is compressed
    assert "swtrace_steps_total" in response.text


@pytest.mark.parametrize(
    ("header", "openmetrics"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5", True),
        ("application/openmetrics-text;version=1.0.0;q=0,text/plain", False),
        ("application/openmetrics-text; q=0.0", False),
        ("text/plain, application/openmetrics-text;q=0;version=1.0.0", False),
    ],
)
def test_a_refused_format_is_not_used(run: RecordedRun, header: str, *, openmetrics: bool) -> None:
    """OpenMetrics is sent to clients that accept it, and not if its weight is 0."""
    with serving(run.directory) as client:
        response = client.get("/metrics", headers={"accept": header})
    assert response.headers["content-type"].startswith("application/openmetrics-text") is openmetrics


def test_index_links_to_everything(client: httpx.Client) -> None:
    """The page at / links to all endpoints, and every link answers."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'href="([^"]+)"', page.text)
    assert {"/metrics", "/healthz", "/api/v1/snapshot"} <= set(links)
    for link in links:
        assert client.get(link).status_code == 200


def test_only_the_formats_asked_for_last_are_kept() -> None:
    """Each format costs the memory of an exposition, so requests for ever new formats do not accumulate."""
    observer = Observer(HostRings(Path("nowhere")), NoSpans())
    handlers = _Handlers(observer, SnapshotCollector(observer.snapshot, observer.health), streams(Path("nowhere")))
    for version in range(9):
        content_type = f"application/openmetrics-text; version=1.0.{version}"
        kept = handlers._exposition(*choose_encoder(content_type))
        assert handlers._exposition(*choose_encoder(content_type)) is kept
    assert len(handlers._expositions) == KEPT_EXPOSITIONS


def test_a_stream_whose_client_takes_nothing_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that stops reading does not keep its stream, and with it the rings of the folder, open for ever."""
    monkeypatch.setattr(http_app, "STALLED_S", 0.05)
    closed = []

    def frames() -> Generator[bytes]:
        try:
            while True:
                yield b"frame"
        finally:
            closed.append(True)

    async def take_one_frame(message: Message) -> None:
        if message.get("body"):
            await asyncio.Event().wait()

    async def respond() -> None:
        async with asyncio.timeout(patience()):
            await http_app._Stream(frames()).stream_response(take_one_frame)

    asyncio.run(respond())
    assert closed
    assert "took nothing for 0 s, so its stream ends" in caplog.text
