"""Query a daemon over HTTP, for all readers.

A daemon on this host is queried directly. For others, ``HTTP_PROXY`` and ``NO_PROXY`` apply. Any problem with an
answer raises an :class:`~swtrace.errors.AnswerError` of one line. A password goes only to daemons on this host or over
TLS, never through a redirect, and into no message.

Standard library only.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from contextlib import suppress
from http import HTTPStatus

from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.errors import AccessError, AnswerError, SettingsError

LOOKED_UP = "dns+"
"""Begins an address whose name stands for several daemons, one at each IP address of the name."""
DEFAULT_PORT = 9465
"""Default port of a daemon."""
MOST_BYTES = 1 << 28
"""Limit of an answer in bytes, both compressed and decompressed."""
MOST_TEXT = 1000
"""Limit of an error message in characters."""
_GZIP_WINDOW = 31
_PART_BYTES = 1 << 16
_TOO_SLOW = "the answer arrives too slowly"
_OK = re.compile(rb"HTTP/1\.[01] 200\b")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*([0-9]{1,6})\s*(?:\r\n|$)", re.IGNORECASE)
_ISSUER_UNKNOWN = {18, 19, 20, 21}
"""OpenSSL's codes for certificates whose issuer is not trusted."""
_NAME_DIFFERS = {62, 64}
_NO_TLS = {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}
"""OpenSSL's reasons when what answers is not TLS, in its various versions."""


def addresses(text: str, setting: str = "--connect", *, names: bool = False) -> tuple[str, ...]:
    """Return the addresses of daemons in a comma-separated list. Errors are about the value of ``setting``.

    With ``names``, each may begin with :data:`LOOKED_UP`.

    Raises:
        SettingsError: the list is empty, or an address is not valid.
    """
    refuse_password(text)
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found:
        raise SettingsError.of(setting, text, "HOST:PORT, or a comma-separated list of them")
    prefixes = [LOOKED_UP if names and each.startswith(LOOKED_UP) else "" for each in found]
    return tuple(
        f"{prefix}{address(each.removeprefix(prefix), setting)}" for each, prefix in zip(found, prefixes, strict=True)
    )


def address(text: str, setting: str = "--connect") -> str:
    """Return a daemon's address as ``host:port``, prefixed with ``https://`` if the text is.

    Args:
        text: ``host``, ``host:port``, ``[v6]:port``, or one of these as a URL without a path.
        setting: The option or variable that it is a value of, for errors.

    Raises:
        SettingsError: the text has none of these forms.
    """
    refuse_password(text)
    scheme, separator, rest = text.strip().rstrip("/").rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or (rest.count(":") > 1 and not host.endswith("]")):
        host, port = rest, str(DEFAULT_PORT)
    host = host.strip("[]")
    whole = (separator and scheme in {"http", "https"}) or not (separator or scheme)
    if not whole or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SettingsError(f"{setting}={text!r}: must be HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return f"{'https://' if scheme == 'https' else ''}{f'[{host}]' if ':' in host else host}:{port}"


def refuse_password(address: str) -> None:
    """Refuse a user and a password in an address, without quoting them.

    Raises:
        SettingsError: the address has them.
    """
    if "@" in address:
        raise SettingsError(
            "an address must not contain a user or a password, which lists of processes would show; "
            "use --user and --password-file, or SWTRACE_USER and SWTRACE_PASSWORD_FILE"
        )


def url(address: str) -> str:
    """Return the URL of ``host:port``, or the address itself if it is a URL.

    Raises:
        SettingsError: it contains a password.
    """
    refuse_password(address)
    return (address if address.startswith(("http://", "https://")) else f"http://{address}").rstrip("/")


def stream(
    address: str, path: str, *, timeout_s: float, credentials: Credentials = ANONYMOUS
) -> http.client.HTTPResponse:
    """Return an open answer, for the caller to read.

    Raises:
        AnswerError: nothing answers, or the answer is an error.
    """
    request = urllib.request.Request(f"{url(address)}{path}", headers={"Accept-Encoding": "gzip"})  # noqa: S310 - http(s), see url
    return _open(address, request, timeout_s, credentials)


def get(address: str, path: str, *, timeout_s: float, credentials: Credentials = ANONYMOUS) -> bytes:
    """Return the decompressed body of an answer. Each part may take ``timeout_s``, the whole body twice that.

    Raises:
        AnswerError: nothing answers, or the answer is an error or damaged.
    """
    deadline_s = time.monotonic() + 2 * timeout_s
    try:
        with stream(address, path, timeout_s=timeout_s, credentials=credentials) as answer:
            body = _all(answer, deadline_s)
            return _inflated(body) if answer.headers.get("Content-Encoding") == "gzip" else body
    except http.client.IncompleteRead as error:
        raise _failed(f"{address}{path}", "the answer is damaged: cut short") from error
    except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
        raise _failed(f"{address}{path}", f"the answer is damaged: {error or type(error).__name__}") from error


class KeptConnection:
    """A connection to a daemon for many small requests that must not take long.

    It reads of an answer only what it needs, because parsing all headers takes longer than the daemon's answer. It
    connects when needed, and never through a proxy.

    Args:
        address: ``host:port`` or URL.
        timeout_s: Limit of each wait.
        credentials: What to show to the daemon, and to trust.
    """

    def __init__(self, address: str, *, timeout_s: float, credentials: Credentials = ANONYMOUS) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._socket: socket.socket | None = None
        self._headers = b""

    def get(self, path: str) -> bytes:
        """Return the body of an answer, of at most 64 KiB.

        Raises:
            AnswerError: nothing answers, or the answer is an error. The next request connects again.
        """
        try:
            connection = self._socket = self._socket or self._connect()
            connection.sendall(b"GET %s HTTP/1.1\r\n%s\r\n" % (path.encode("ascii"), self._headers))
            return _small_answer(connection)
        except (OSError, ValueError) as error:
            self.close()
            raise _failed(f"{self._address}{path}", error) from error

    def close(self) -> None:
        """Disconnect; also while another thread waits for an answer."""
        connection, self._socket = self._socket, None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _connect(self) -> socket.socket:
        whole = url(self._address)
        here, authorization, context = _shown(self._address, whole, self._credentials)
        parts = urllib.parse.urlsplit(whole)
        if not here and parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.netloc):
            raise _failed(self._address, "it is behind a proxy")
        signed = "" if authorization is None else f"Authorization: {authorization}\r\n"
        self._headers = f"Host: {parts.netloc}\r\nAccept-Encoding: identity\r\n{signed}".encode("latin-1")
        connection = (
            http.client.HTTPSConnection(parts.netloc, timeout=self._timeout_s, context=context)
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.netloc, timeout=self._timeout_s)
        )
        connection.connect()
        return connection.sock


def _small_answer(connection: socket.socket) -> bytes:
    """Read one answer, and return its body.

    Raises:
        ValueError: it is no answer, says an error, or is larger than 64 KiB.
    """
    data = b""
    while len(data) <= _PART_BYTES and (part := connection.recv(_PART_BYTES)):
        data += part
        head, whole, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if whole and (not _OK.match(head) or length is None):
            raise ValueError(head.partition(b"\r\n")[0].decode("latin-1"))
        if whole and length is not None and len(body) >= int(length[1]):
            return body
    raise ValueError("the answer is cut short, or too large")


class _Connection(http.client.HTTPConnection):
    """Gives up on an answer whose headers take more than twice the timeout, even if bytes keep arriving."""

    def getresponse(self) -> http.client.HTTPResponse:
        if self.timeout is None:
            return super().getresponse()
        given_up = threading.Event()
        limit = threading.Timer(2 * self.timeout, _give_up, (self.sock, given_up))
        limit.daemon = True
        limit.start()
        try:
            answer = super().getresponse()
        except (OSError, http.client.HTTPException):
            if not given_up.is_set():
                raise
        finally:
            limit.cancel()
        if given_up.is_set():
            raise TimeoutError(_TOO_SLOW)
        return answer


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._trust = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req, context=self._trust)


def _give_up(connection: socket.socket, given_up: threading.Event) -> None:
    given_up.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _open(
    address: str, request: urllib.request.Request, timeout_s: float, credentials: Credentials
) -> http.client.HTTPResponse:
    secure = request.type == "https"
    here, authorization, context = _shown(address, request.full_url, credentials)
    if authorization is not None:
        request.add_unredirected_header("Authorization", authorization)
    proxies: dict[str, str] | None = {} if here else None
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Http, _Https(context))
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.UNAUTHORIZED:
                raise _failed(address, _unauthorized(credentials), AccessError) from error
            raise _failed(address, _said(error, time.monotonic() + timeout_s)) from error
    except urllib.error.URLError as error:
        raise _not_connected(address, error.reason, credentials, secure=secure) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _not_connected(address, error, credentials, secure=secure) from error
    return answer


def _shown(address: str, whole: str, credentials: Credentials) -> tuple[bool, str | None, ssl.SSLContext]:
    """Return whether a URL is on this host, the value of the Authorization header, and whom to trust.

    Raises:
        AccessError: the credentials cannot be used there.
    """
    try:
        parts = urllib.parse.urlsplit(whole)
        here = _is_here(parts.hostname or "")
        authorization, context = credentials.authorization(), credentials.context()
    except SettingsError as error:
        raise _failed(address, error, AccessError) from error
    except ValueError as error:
        raise _failed(address, error) from error
    if authorization is not None and not (here or parts.scheme == "https"):
        where = _host_and_port(address)
        raise _failed(
            address, f"no password is sent to another host without TLS; connect to https://{where}", AccessError
        )
    return here, authorization, context


def _unauthorized(credentials: Credentials) -> str:
    if credentials.user is None:
        return (
            "401 Unauthorized: the daemon wants a password; "
            "give --user and --password-file, or set SWTRACE_USER and SWTRACE_PASSWORD_FILE"
        )
    shown = f"user {credentials.user!r} with the password in {credentials.password_file}"
    return f"401 Unauthorized: the daemon does not accept {shown}"


def _not_connected(address: str, reason: object, credentials: Credentials, *, secure: bool) -> AnswerError:
    """Return the error about a connection that failed, with what may help."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        if reason.verify_code in _ISSUER_UNKNOWN:
            advice = "; name its CA certificate with --ca or SWTRACE_CA"
        else:
            advice = "; connect to a name in it" if reason.verify_code in _NAME_DIFFERS else ""
        return _failed(
            address, f"the daemon's certificate is refused: {reason.verify_message.rstrip('.')}{advice}", AccessError
        )
    if isinstance(reason, ssl.SSLError) and reason.reason in _NO_TLS:
        return _failed(address, f"what answers there speaks no TLS; connect to http://{_host_and_port(address)}")
    closed = isinstance(reason, ConnectionError | ssl.SSLError) and not isinstance(reason, ConnectionRefusedError)
    if closed and secure:
        if credentials.cert is None:
            guess = "want a client certificate (--cert and --key, or SWTRACE_CERT and SWTRACE_KEY)"
        else:
            guess = f"not trust the client certificate in {credentials.cert}"
        advice = f"the daemon may {guess}, or cannot use its web configuration, as its log says"
        return _failed(address, f"the TLS connection failed ({_one_line(reason)}): {advice}", AccessError)
    if closed:
        advice = f"if the daemon uses TLS, connect to https://{_host_and_port(address)}"
        return _failed(address, f"no answer ({_one_line(reason)}); {advice}")
    if isinstance(reason, http.client.BadStatusLine):
        return _failed(address, f"the answer is not HTTP: {reason}")
    return _failed(address, reason)


def _host_and_port(address: str) -> str:
    return url(address).partition("://")[2]


def _failed(where: str, what: object, kind: type[AnswerError] = AnswerError) -> AnswerError:
    return kind(f"{where}: {_one_line(what)}"[:MOST_TEXT])


def _one_line(what: object) -> str:
    """Return a text or an error as one printable line, whatever the peer sent."""
    text = str((what.strerror if isinstance(what, OSError) else None) or what)
    said = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return said or type(what).__name__


def _is_here(host: str) -> bool:
    """Return whether a host name or address means this host."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _said(error: urllib.error.HTTPError, deadline_s: float) -> str:
    """Return a daemon's error message, or only the HTTP status if the message is late or unreadable."""
    status = f"{error.code} {error.reason}"
    try:
        body = _all(error, deadline_s)
        if error.headers.get("Content-Encoding") == "gzip":
            body = _inflated(body)
        if error.headers.get_content_type() == "application/json":
            return f"{status}: {json.loads(body)['error']}"
        return f"{status}: {body.decode().strip()}" if error.headers.get_content_type() == "text/plain" else status
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError, zlib.error):
        return status


def _all(answer: http.client.HTTPResponse | urllib.error.HTTPError, deadline_s: float) -> bytes:
    parts = []
    size = 0
    # One receive at a time: with an answer that trickles in, a longer read would never time out.
    while size <= MOST_BYTES and (part := answer.read1(_PART_BYTES)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline_s:
            raise TimeoutError(_TOO_SLOW)
    body = b"".join(parts)
    if answer.length:
        raise ValueError("too large" if len(body) > MOST_BYTES else "cut short")
    return body


def _inflated(body: bytes) -> bytes:
    inflate = zlib.decompressobj(_GZIP_WINDOW)
    plain = inflate.decompress(body, MOST_BYTES)
    if not inflate.eof:
        raise ValueError("too large" if inflate.unconsumed_tail else "the compressed data is cut short")
    return plain
