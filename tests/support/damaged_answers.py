"""Servers whose answers are damaged, or not those of a daemon."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_JSON = b'{"api":1,"taken_ns":1,"cursor":0,"started_unix_ns":1,"ranks":[],"series":[],"steps":[],"skipped":0}'
_GZIPPED = gzip.compress(_JSON)


def _answer(body: bytes, *headers: str, length: int | None = None, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


_GZIP = "Content-Encoding: gzip"
DAMAGED = {
    "cut gzip": _answer(_GZIPPED[:-12], _GZIP),
    "broken gzip": _answer(_GZIPPED[:12] + b"\xff" * 20 + _GZIPPED[32:], _GZIP),
    "no gzip": _answer(b"plain", _GZIP),
    "deep JSON": _answer(b"[" * 200_000),
    "deep JSON object": _answer(b'{"a":' * 200_000),
    "huge number": _answer(b'{"api":' + b"1" * 10_000 + b"}"),
    "a list": _answer(b"[1]"),
    "another version": _answer(b'{"api": 2}'),
    "fields missing": _answer(b'{"api": 1}'),
    "fields of other types": _answer(_JSON.replace(b'"ranks":[]', b'"ranks":[[1]]')),
    "no text": _answer(bytes(range(128, 256))),
    "cut body": _answer(_JSON[:20], length=len(_JSON)),
    "cut chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "an error in deep JSON": _answer(b"[" * 200_000, "Content-Type: application/json", status="503 Busy"),
    "an error in broken gzip": _answer(b"x", "Content-Type: application/json", _GZIP, status="500 Error"),
}
"""Damaged answers of a server, by kind of damage."""


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Answer every request with these bytes; yield ``host:port``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, answer), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)


@contextmanager
def dripping(at_once: bytes) -> Iterator[str]:
    """Answer one request, the rest of it byte by byte as long as anybody listens; yield ``host:port``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=(listener, at_once), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)


@contextmanager
def silent(at_once: bytes) -> Iterator[str]:
    """Answer one request, and then nothing more until the end of the block; yield ``host:port``."""
    done = threading.Event()

    def serve() -> None:
        client, _address = listener.accept()
        with client:
            client.sendall(at_once)
            done.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join(30)


def _drip(listener: socket.socket, at_once: bytes) -> None:
    client, _address = listener.accept()
    with client, suppress(OSError):
        client.sendall(at_once)
        while True:
            client.sendall(b"x")
            time.sleep(0.02)


def _serve(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            client, _address = listener.accept()
        except OSError:
            return
        with client:
            try:
                client.recv(1 << 16)
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
            except OSError:
                continue
