"""Requests to a daemon: every damaged answer gives a one-line error, and one rule decides on proxies."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from pathlib import Path

import pytest
import trustme

from swtrace import http_client
from swtrace.credentials import Credentials
from swtrace.errors import AccessError, AnswerError, SettingsError, SwtraceError
from swtrace.http_client import KeptConnection
from swtrace.recording.remote import DaemonStream
from swtrace.testing.metrics import read_metrics
from tests.support.daemon_threads import serving
from tests.support.damaged_answers import DAMAGED, answering, dripping
from tests.support.patience import patience
from tests.support.web_files import PASSWORD, WebFiles

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


@pytest.fixture
def web(tmp_path: Path) -> WebFiles:
    """Files for a daemon with TLS and user alice, and for its clients."""
    return WebFiles.make(tmp_path / "web")


def asked(url: str, credentials: Credentials) -> bytes:
    """Return what a daemon answers to these credentials."""
    return http_client.get(url, "/healthz", timeout_s=patience(), credentials=credentials)


def test_the_right_credentials_are_served(web: WebFiles, tmp_path: Path) -> None:
    """With CA, user, password and client certificate, a protected daemon answers."""
    web.write(client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem")
    shown = Credentials.from_environment(web.settings(), cert=web.folder / "client.pem")
    with serving(tmp_path, web=web) as client:
        assert asked(str(client.base_url), shown) == b"ok\n"


def test_a_refusal_says_what_to_set(web: WebFiles, tmp_path: Path) -> None:
    """Where daemon and client do not trust each other, one line names the options, and no secret."""
    other = web.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    (web.folder / "wrong").write_text("a wrong password", encoding="utf-8")
    ca, password = web.folder / "ca.pem", web.folder / "password"
    refusals = {
        "401 Unauthorized: the daemon wants a password; give --user and --password-file": Credentials(ca),
        "does not accept user 'alice' with the password in": Credentials(ca, "alice", web.folder / "wrong"),
        "does not accept user 'bob' with the password in": Credentials(ca, "bob", password),
        "unable to get local issuer certificate; name its CA certificate with --ca": Credentials(other),
        "--ca (SWTRACE_CA): ": Credentials(web.folder / "gone"),
    }
    with serving(tmp_path, web=web) as client:
        for says, shown in refusals.items():
            with pytest.raises(AccessError) as refused:
                asked(str(client.base_url), shown)
            assert says in str(refused.value)
            assert str(refused.value).startswith(str(client.base_url).rstrip("/"))
            assert PASSWORD not in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_name_that_is_not_in_the_certificate_is_refused(web: WebFiles, tmp_path: Path) -> None:
    """A daemon with another host's certificate is not trusted, and the message says so."""
    with serving(tmp_path, web=web) as client, pytest.raises(AccessError, match="connect to a name in it"):
        asked(f"https://0.0.0.0:{client.base_url.port}", Credentials(web.folder / "ca.pem"))


def test_a_missing_client_certificate_is_guessed(web: WebFiles, tmp_path: Path) -> None:
    """A daemon that ends the handshake may want a client certificate, or not trust the one that it got."""
    web.write(users={}, client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem")
    ca, other = web.folder / "ca.pem", web.issue(trustme.CA(), "other.pem")
    with serving(tmp_path, web=web) as client:
        with pytest.raises(AccessError, match="may want a client certificate"):
            asked(str(client.base_url), Credentials(ca))
        with pytest.raises(AccessError, match=rf"may not trust the client certificate in {other}"):
            asked(str(client.base_url), Credentials(ca, cert=other))


def test_http_to_a_tls_port_and_the_reverse_are_explained(web: WebFiles, tmp_path: Path) -> None:
    """The message names the address with the other scheme."""
    with serving(tmp_path, web=web) as client:
        where = f"127.0.0.1:{client.base_url.port}"
        with pytest.raises(AnswerError, match=f"connect to https://{where}"):
            asked(where, Credentials())
    with serving(tmp_path) as client:
        where = f"127.0.0.1:{client.base_url.port}"
        with pytest.raises(AnswerError, match=f"connect to http://{where}"):
            asked(f"https://{where}", Credentials())


def test_a_password_is_not_sent_in_clear_to_another_host(web: WebFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """To other hosts passwords go only over TLS, so that a forgotten ``https://`` does not give them away."""
    credentials = Credentials.from_environment(web.settings())
    with listening() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(AccessError, match=r"connect to https://daemon\.invalid:9465"):
            http_client.get("daemon.invalid:9465", "/", timeout_s=2, credentials=credentials)
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_redirect_does_not_carry_the_password_on(web: WebFiles) -> None:
    """Where an answer sends the client, it goes without its password."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as target:

        def answer_one() -> None:
            peer, _address = target.accept()
            with peer:
                received.append(peer.recv(1 << 16))
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        thread = threading.Thread(target=answer_one, daemon=True)
        thread.start()
        there = f"http://127.0.0.1:{target.getsockname()[1]}/elsewhere"
        moved = f"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        with answering(moved.encode()) as address:
            assert asked(address, Credentials.from_environment(web.settings())) == b"ok"
        thread.join(patience())
    assert b"GET /elsewhere" in received[0]
    assert b"authorization" not in received[0].lower()
    assert base64.b64encode(PASSWORD.encode())[:8] not in received[0]


@pytest.mark.parametrize("url", ["https://alice:hunter2@gpu-a:9465", "alice:hunter2@gpu-a", "http://hunter2@gpu-a/"])
def test_a_password_in_an_address_is_refused_and_not_quoted(url: str) -> None:
    """Every reader refuses it and says what to use instead."""
    for ask in (lambda: http_client.address(url), lambda: read_metrics(url), lambda: DaemonStream(url)):
        with pytest.raises(SettingsError, match="--password-file") as refused:
            ask()
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("damage", [*DAMAGED, "error"])
def test_a_kept_connection_raises_only_one_error(damage: str) -> None:
    """Whatever answers, a small request raises an AnswerError or returns what was sent; the next one tries again."""
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
    with answering(DAMAGED.get(damage, refusal)) as address:
        connection = KeptConnection(address, timeout_s=2)
        for _ in range(2):
            with contextlib.suppress(AnswerError):
                assert connection.get("/api/v1/clock") in DAMAGED[damage]
        connection.close()


def test_a_kept_connection_signs_in_and_is_kept(web: WebFiles, tmp_path: Path) -> None:
    """Requests to a protected daemon carry the credentials, and share one connection."""
    with serving(tmp_path, web=web) as client:
        url = str(client.base_url).rstrip("/")
        connection = KeptConnection(url, timeout_s=patience(), credentials=Credentials.from_environment(web.settings()))
        assert [connection.get("/healthz") for _ in range(2)] == [b"ok\n"] * 2
        assert connection._socket is not None
        connection.close()
        stranger = KeptConnection(url, timeout_s=patience(), credentials=Credentials(ca=web.folder / "ca.pem"))
        with pytest.raises(AnswerError, match="401 Unauthorized"):
            stranger.get("/healthz")


def test_a_kept_connection_gives_no_password_away(web: WebFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another host it needs TLS, and it goes through no proxy."""
    with listening() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        shown = Credentials.from_environment(web.settings())
        with pytest.raises(AccessError, match=r"connect to https://daemon\.invalid:9465"):
            KeptConnection("daemon.invalid:9465", timeout_s=2, credentials=shown).get("/")
        with pytest.raises(AnswerError, match="behind a proxy"):
            KeptConnection("daemon.invalid:9465", timeout_s=2).get("/")
        with pytest.raises(TimeoutError):
            proxy.accept()
