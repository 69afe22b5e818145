"""Requests to a daemon: every damaged answer gives a one-line error, and one rule decides on proxies."""

from __future__ import annotations

import socket

import pytest

from swtrace import http_client
from swtrace.errors import AnswerError, SwtraceError
from swtrace.recording.remote import DaemonStream
from swtrace.testing.metrics import read_metrics
from tests.support.damaged_answers import DAMAGED, answering, dripping

TRANSFERRED = (
    "cut gzip",
    "broken gzip",
    "no gzip",
    "cut body",
    "cut chunks",
    "no HTTP",
    "nothing",
    "an error in deep JSON",
    "an error in broken gzip",
)
"""Answers that are damaged whatever was requested."""


@pytest.mark.parametrize("damage", TRANSFERRED)
def test_a_damaged_answer_is_one_clear_error(damage: str) -> None:
    """A damaged answer is a one-line error that names the daemon."""
    with answering(DAMAGED[damage]) as address, pytest.raises(AnswerError) as caught:
        http_client.get(address, "/api/v1/snapshot", timeout_s=10)
    assert str(caught.value).startswith(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(b"", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nServer: ", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n", id="body"),
    ],
)
def test_an_answer_that_comes_byte_by_byte_is_given_up(at_once: bytes) -> None:
    """Every byte arrives in time, but the whole answer never would."""
    with dripping(at_once) as address, pytest.raises(AnswerError, match="too slowly"):
        http_client.get(address, "/api/v1/snapshot", timeout_s=2)


def test_an_error_that_comes_byte_by_byte_is_its_status() -> None:
    """The body of an error answer is not waited for."""
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 1048576\r\n\r\n"
    with dripping(head) as address, pytest.raises(AnswerError, match=r"503 Service Unavailable$"):
        http_client.get(address, "/api/v1/snapshot", timeout_s=2)


def listening() -> socket.socket:
    """Return a socket that acts as a proxy: a connection to it went through the proxy."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    return listener


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])  # noqa: S104 (asked, not bound)
def test_a_daemon_on_this_host_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Every reader connects to a loopback address directly, whatever HTTP_PROXY says."""
    with listening() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        for ask in (
            lambda: http_client.get(f"{host}:1", "/", timeout_s=5),
            lambda: read_metrics(f"http://{host}:1"),
            DaemonStream(f"{host}:1").connect,
        ):
            with pytest.raises(SwtraceError):
                ask()
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_daemon_elsewhere_is_asked_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to another host go through the proxy of the environment."""
    with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"proxied":1}') as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert http_client.get("daemon.invalid:9465", "/", timeout_s=5) == b'{"proxied":1}'
