"""Ask a daemon over HTTP: one way for every reader, whatever answers.

A daemon on this host is asked directly; for any other the environment decides on a proxy (``HTTP_PROXY``,
``NO_PROXY``). Whatever is wrong with an answer is an :class:`~swtrace.errors.AnswerError` of one line.

Standard library only.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from contextlib import suppress

from swtrace.errors import AnswerError, SettingsError

DEFAULT_PORT = 9465
"""Of a daemon."""
MOST_BYTES = 1 << 28
"""No answer is larger, compressed or not."""
MOST_TEXT = 1000
"""No error is longer."""
_GZIP_WINDOW = 31
_PART_BYTES = 1 << 16
_TOO_SLOW = "it comes too slowly"


def address(text: str) -> str:
    """Return a daemon's address as ``host:port``, with ``https://`` in front where it was given so.

    Args:
        text: ``host``, ``host:port``, ``[v6]:port``, or one of these as a URL without a path.

    Raises:
        SettingsError: it is none of these.
    """
    scheme, separator, rest = text.strip().rstrip("/").rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or (rest.count(":") > 1 and not host.endswith("]")):
        host, port = rest, str(DEFAULT_PORT)
    host = host.strip("[]")
    whole = (separator and scheme in {"http", "https"}) or not (separator or scheme)
    if not whole or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SettingsError(f"--connect {text!r}: expected HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return f"{'https://' if scheme == 'https' else ''}{f'[{host}]' if ':' in host else host}:{port}"


def url(address: str) -> str:
    """Return the URL of ``host:port``; one that is given as a URL stays what it is."""
    return (address if address.startswith(("http://", "https://")) else f"http://{address}").rstrip("/")


def stream(address: str, path: str, *, timeout_s: float) -> http.client.HTTPResponse:
    """Return an answer to be read by whoever asks, byte by byte.

    Raises:
        AnswerError: nothing answers, or with an error.
    """
    request = urllib.request.Request(f"{url(address)}{path}", headers={"Accept-Encoding": "gzip"})  # noqa: S310 - http(s), see url
    return _open(address, request, timeout_s)


def text(address: str, path: str, *, timeout_s: float) -> bytes:
    """Return the body of an answer, uncompressed; within ``timeout_s`` for each of its parts, and twice that for all.

    Raises:
        AnswerError: nothing answers, or with an error, or the answer is damaged.
    """
    deadline_s = time.monotonic() + 2 * timeout_s
    try:
        with stream(address, path, timeout_s=timeout_s) as answer:
            body = _all(answer, deadline_s)
            return _inflated(body) if answer.headers.get("Content-Encoding") == "gzip" else body
    except http.client.IncompleteRead as error:
        raise _failed(f"{address}{path}", "the answer is damaged: cut short") from error
    except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
        raise _failed(f"{address}{path}", f"the answer is damaged: {error or type(error).__name__}") from error


class _Connection(http.client.HTTPConnection):
    """Gives up an answer whose head takes longer than twice the timeout, even if none of its bytes is late."""

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
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


def _give_up(asked: socket.socket, given_up: threading.Event) -> None:
    given_up.set()
    with suppress(OSError):
        asked.shutdown(socket.SHUT_RDWR)


def _open(address: str, request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
    try:
        proxies: dict[str, str] | None = (
            {} if _is_here(urllib.parse.urlsplit(request.full_url).hostname or "") else None
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Http, _Https)
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _failed(address, _said(error, time.monotonic() + timeout_s)) from error
    except urllib.error.URLError as error:
        raise _failed(address, error.reason) from error
    except http.client.BadStatusLine as error:
        raise _failed(address, f"what answers does not speak HTTP: {error}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(address, error) from error
    return answer


def _failed(where: str, what: object) -> AnswerError:
    """Return the error, as one line that a terminal can show, whatever was sent."""
    said = " ".join("".join(each if each.isprintable() else " " for each in str(what)).split())
    return AnswerError(f"{where}: {said or type(what).__name__}"[:MOST_TEXT])


def _is_here(host: str) -> bool:
    """Return whether a host is this one, by the name that it was given."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _said(error: urllib.error.HTTPError, deadline_s: float) -> str:
    """Return what a daemon says is wrong, if it says it in time."""
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
    # One receive at a time: an answer that comes byte by byte never lets a longer read run into its timeout.
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
        raise ValueError("too large" if inflate.unconsumed_tail else "its compression is cut short")
    return plain
