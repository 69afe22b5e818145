"""Keep strangers out of the daemon: TLS and passwords as its web configuration file says, on every path.

Both ask the file for every connection and every request, so that a renewed certificate or a changed password counts at
once. Connections and streams that are already open continue.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import ssl
from typing import TYPE_CHECKING, Any

import bcrypt
from starlette.responses import PlainTextResponse

from swtrace.daemon.web_config import WebConfig, WebConfigFile
from swtrace.errors import SettingsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_CHECKS = 16
"""How many passwords may wait to be checked. One is checked at a time, so a flood of them takes one core at most."""
_BCRYPT_BYTES = 72
"""bcrypt ignores the rest of a password."""


class CurrentTls(ssl.SSLContext):
    """A context for a server that makes every connection with the certificate of that moment.

    It has no certificate itself. So while the file cannot be used, each handshake fails.
    """

    file: WebConfigFile

    @classmethod
    def of(cls, file: WebConfigFile) -> CurrentTls:
        """Return the context of a file."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.file = file
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection. The event loop calls this once for each."""
        try:
            current = self.file.current().tls
        except SettingsError:
            current = None
        if current is None:
            return super().wrap_bio(*arguments, **options)
        return current.wrap_bio(*arguments, **options)


class Gate:
    """Passes on the requests that the web configuration file allows. Wraps the whole application."""

    def __init__(self, app: ASGIApp, file: WebConfigFile) -> None:
        self._app = app
        self._file = file
        self._config: WebConfig | None = None
        self._secret = secrets.token_bytes(32)
        self._verified: dict[str, bytes] = {}
        """A keyed digest of the password that was right for a user of this configuration."""
        self._checking = asyncio.Semaphore(1)
        self._checks = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it."""
        refusal = await self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ASGIApp | None:
        try:
            config = self._file.current()
        except SettingsError:  # logged once; a stranger learns nothing of it
            return PlainTextResponse("the daemon's web configuration cannot be used; see its log\n", 503)
        if config is not self._config:
            self._config, self._verified = config, {}
        if not config.users:
            return None
        given = _credentials(scope)
        if given is not None:
            if self._is_verified(*given):
                return None
            if self._checks >= MOST_CHECKS:
                return PlainTextResponse("too many passwords to check; try again\n", 429, {"retry-after": "1"})
            if await self._check(config, *given):
                return None
        return PlainTextResponse("Unauthorized\n", 401, {"www-authenticate": 'Basic realm="swtrace", charset="UTF-8"'})

    def _is_verified(self, user: str, password: bytes) -> bool:
        return hmac.compare_digest(self._verified.get(user, b""), self._digest(password))

    async def _check(self, config: WebConfig, user: str, password: bytes) -> bool:
        # An unknown user costs as much time as a known one, so that the time does not tell who is known.
        hashed = config.users.get(user) or max(config.users.values(), key=_cost)
        self._checks += 1
        try:
            async with self._checking:
                right = await asyncio.to_thread(_matches, password, hashed)
        finally:
            self._checks -= 1
        right = right and user in config.users
        if right and config is self._config:
            self._verified[user] = self._digest(password)
        return right

    def _digest(self, password: bytes) -> bytes:
        return hashlib.blake2b(password, key=self._secret).digest()


def _credentials(scope: Scope) -> tuple[str, bytes] | None:
    """Return the user and the password of a request's Authorization header; None if it has none that can be read."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _space, encoded = found[0].partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password[:_BCRYPT_BYTES]) if colon else None
    except ValueError:
        return None


def _cost(hashed: bytes) -> bytes:
    return hashed[4:6]


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:  # a password that bcrypt does not take
        return False
