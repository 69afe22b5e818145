"""A daemon with a web configuration file: strangers get nothing, users everything, and changes count at once."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
import trustme

from swtrace.daemon import access
from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.http_app import DOCUMENTS, make_app
from swtrace.daemon.observer import Observer
from swtrace.daemon.server import streams
from swtrace.observing import HostRings
from swtrace.spans.delivery import NoSpans
from tests.support.daemon_threads import serving
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.web_files import PASSWORD, WebFiles, hashed

ALICE = ("alice", PASSWORD)
UNREAD = Observer(HostRings(Path("nowhere")), NoSpans())
ROUTES = [
    route.path  # type: ignore[attr-defined]  # all routes have paths
    for route in make_app(UNREAD, SnapshotCollector(UNREAD.snapshot, UNREAD.health), streams(Path("nowhere"))).routes
]
PATHS = sorted({*ROUTES, *(f"/api/v1/{name}" for name in DOCUMENTS), "/nothing", "/api/v1/nothing", "/../etc/passwd"})


@pytest.fixture
def web(tmp_path: Path) -> WebFiles:
    """Files for a daemon with TLS and user alice."""
    return WebFiles.make(tmp_path / "web")


@pytest.fixture
def stranger(run: RecordedRun, web: WebFiles) -> Iterator[httpx.Client]:
    """A client without credentials of a daemon with TLS and user alice."""
    with serving(run.directory, web=web) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_a_stranger_gets_nothing_but_401(stranger: httpx.Client, method: str) -> None:
    """Every path, whether it exists or not, answers 401 and the same word."""
    for path in PATHS:
        response = stranger.request(method, path)
        assert response.status_code == 401, path
        assert response.text == ("" if method == "HEAD" else "Unauthorized\n"), path
        assert response.headers["www-authenticate"].startswith("Basic ")


def test_a_user_gets_everything(stranger: httpx.Client) -> None:
    """With the right password, every link of the page answers, and the stream sends a recording."""
    links = re.findall(r'href="([^"]+)"', stranger.get("/", auth=ALICE).text)
    assert {"/metrics", "/healthz", "/api/v1/snapshot"} <= set(links)
    assert {stranger.get(link, auth=ALICE).status_code for link in links} == {200}
    assert stranger.get("/nothing", auth=ALICE).status_code == 404
    with stranger.stream("GET", "/api/v1/recording", auth=ALICE) as response:
        assert response.status_code == 200
        assert next(response.iter_raw())


BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !",
        f"Bearer {BASIC}",
        f"Basic {BASIC[:-4]}",
        "Basic " + base64.b64encode(b"alice:").decode(),
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(f"bob:{PASSWORD}".encode()).decode(),
        "Basic " + base64.b64encode(f"Alice:{PASSWORD}".encode()).decode(),
        "Basic " + base64.b64encode(f"alice:{PASSWORD} ".encode()).decode(),
        "Basic " + base64.b64encode(b"alice:open\0sesame").decode(),
        "Basic " + base64.b64encode(b"\xff:" + PASSWORD.encode()).decode(),
        "Basic " + base64.b64encode(f"alice:{hashed()}".encode()).decode(),
    ],
)
def test_anything_but_the_right_user_and_password_is_refused(stranger: httpx.Client, header: str) -> None:
    """A wrong password, an unknown user, another scheme and a damaged header are all answered with 401."""
    assert stranger.get("/metrics", headers={"authorization": header}).status_code == 401


def test_two_authorizations_are_refused(stranger: httpx.Client) -> None:
    """A request must not carry several, of which a proxy may have checked another than the daemon."""
    headers = [("authorization", f"Basic {BASIC}"), ("authorization", f"Basic {BASIC}")]
    assert stranger.get("/metrics", headers=headers).status_code == 401


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the passwords that bcrypt has checked so far."""
    passwords: list[bytes] = []
    check = bcrypt.checkpw

    def checkpw(password: bytes, hashed_password: bytes) -> bool:
        passwords.append(password)
        return check(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return passwords


def test_a_right_password_is_checked_once(stranger: httpx.Client, checked: list[bytes]) -> None:
    """Bcrypt is slow on purpose, so a scrape must not pay for it each time."""
    assert {stranger.get("/healthz", auth=ALICE).status_code for _ in range(3)} == {200}
    assert checked == [PASSWORD.encode()]


def test_an_unknown_user_is_checked_like_a_known_one(stranger: httpx.Client, checked: list[bytes]) -> None:
    """The time of an answer does not tell which users exist, even with the right password of another."""
    assert stranger.get("/healthz", auth=("bob", PASSWORD)).status_code == 401
    assert stranger.get("/healthz").status_code == 401
    assert checked == [PASSWORD.encode()]


def test_a_flood_of_wrong_passwords_is_cut_short(stranger: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many passwords wait to be checked; further ones are refused at once, and known users are served."""
    assert stranger.get("/healthz", auth=ALICE).status_code == 200
    release = threading.Event()
    monkeypatch.setattr(access, "_matches", lambda _password, _hashed: not release.wait(patience()))
    codes: list[int] = []

    def guess(number: int) -> None:
        codes.append(stranger.get("/healthz", auth=("alice", f"guess {number}")).status_code)

    guesses = [threading.Thread(target=guess, args=(number,)) for number in range(access.MOST_CHECKS + 4)]
    for each in guesses:
        each.start()
    eventually(lambda: len(codes) == 4, "the refusals")
    assert stranger.get("/healthz", auth=ALICE).status_code == 200
    release.set()
    for each in guesses:
        each.join(patience())
    assert sorted(codes) == [*[401] * access.MOST_CHECKS, *[429] * 4]


def test_passwords_work_without_tls(run: RecordedRun, web: WebFiles) -> None:
    """A file without ``tls_server_config`` asks for passwords over plain HTTP, for use behind a proxy."""
    web.write(tls=False)
    with serving(run.directory, web=web) as client:
        assert client.base_url.scheme == "http"
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", auth=ALICE).status_code == 200


def test_tls_works_without_passwords(run: RecordedRun, web: WebFiles) -> None:
    """A file without ``basic_auth_users`` encrypts, and serves everyone."""
    web.write(users={})
    with serving(run.directory, web=web) as client:
        assert client.get("/metrics").status_code == 200


def answer(client: httpx.Client, context: ssl.SSLContext, path: str = "/healthz") -> str:
    """Return the body that a new connection to the client's daemon gets."""
    return httpx.get(client.base_url.join(path), verify=context, timeout=patience()).text


def test_a_client_certificate_is_required(run: RecordedRun, web: WebFiles) -> None:
    """Without a certificate of the CA no request is answered, whatever else the client shows."""
    web.write(users={}, client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem")
    with serving(run.directory, web=web) as client:
        for shown in (None, web.issue(trustme.CA(), "other.pem")):
            with pytest.raises(httpx.TransportError):
                answer(client, web.trust(shown))
        assert answer(client, web.trust(web.folder / "client.pem")) == "ok\n"


def test_a_client_certificate_is_verified_if_given(run: RecordedRun, web: WebFiles) -> None:
    """``VerifyClientCertIfGiven`` serves clients without a certificate, but none with another CA's."""
    web.write(users={}, client_auth_type="VerifyClientCertIfGiven", client_ca_file="ca.pem")
    with serving(run.directory, web=web) as client:
        assert answer(client, web.trust()) == "ok\n"
        with pytest.raises(httpx.TransportError):
            answer(client, web.trust(web.issue(trustme.CA(), "other.pem")))


def test_the_lowest_version_of_tls_is_kept(run: RecordedRun, web: WebFiles) -> None:
    """With ``min_version: TLS13``, a client that speaks only TLS 1.2 is refused."""
    web.write(users={}, min_version="TLS13")
    old = web.trust()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(run.directory, web=web) as client:
        with pytest.raises(httpx.TransportError):
            answer(client, old)
        assert answer(client, web.trust()) == "ok\n"


def certificate(client: httpx.Client) -> str:
    """Return the certificate that the client's daemon shows now."""
    return ssl.get_server_certificate((client.base_url.host, client.base_url.port or 0), timeout=patience())


def test_a_renewed_certificate_is_shown_without_a_restart(stranger: httpx.Client, web: WebFiles) -> None:
    """The next connection gets the new certificate."""
    assert certificate(stranger) == (web.folder / "server.pem").read_text(encoding="ascii")
    web.renew()
    assert certificate(stranger) == (web.folder / "server.pem").read_text(encoding="ascii")


def test_a_changed_password_counts_without_a_restart(stranger: httpx.Client, web: WebFiles) -> None:
    """The next request needs the new password, on an open connection too, and the old one is forgotten."""
    assert stranger.get("/healthz", auth=ALICE).status_code == 200
    web.write(users={"alice": hashed("changed"), "bob": hashed()})
    assert stranger.get("/healthz", auth=ALICE).status_code == 401
    assert stranger.get("/healthz", auth=("alice", "changed")).status_code == 200
    assert stranger.get("/healthz", auth=("bob", PASSWORD)).status_code == 200


def test_a_broken_file_serves_nobody_until_it_is_repaired(stranger: httpx.Client, web: WebFiles) -> None:
    """Open connections get 503 without a reason, new ones fail, and both are served again after the repair."""
    assert stranger.get("/healthz", auth=ALICE).status_code == 200
    web.config.write_text("basic_auth_users: {}", encoding="utf-8")
    refused = stranger.get("/metrics", auth=ALICE)
    assert (refused.status_code, str(web.config) in refused.text) == (503, False)
    with pytest.raises(httpx.TransportError):
        answer(stranger, web.trust())
    web.write()
    assert stranger.get("/healthz", auth=ALICE).status_code == 200
    assert answer(stranger, web.trust()) == "Unauthorized\n"


def connection(client: httpx.Client) -> socket.socket:
    """Return a TCP connection to the client's daemon, without TLS."""
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), patience())


def test_plain_http_to_a_tls_port_gets_nothing(stranger: httpx.Client) -> None:
    """A request without TLS is not answered."""
    with connection(stranger) as plain:
        plain.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {BASIC}\r\n\r\n".encode())
        try:
            received = plain.recv(1 << 16)
        except ConnectionResetError:
            received = b""
    assert b"HTTP" not in received
    assert b"swtrace" not in received


def test_handshakes_that_never_end_block_nobody(stranger: httpx.Client) -> None:
    """Clients that connect and send nothing, or half a handshake, keep no other client waiting."""
    silent = [connection(stranger) for _ in range(50)]
    try:
        for each in silent[::2]:
            each.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
        assert stranger.get("/healthz", auth=ALICE).text == "ok\n"
    finally:
        for each in silent:
            each.close()
