"""Certificates and passwords: what a client of a daemon shows and trusts, and how PEM files are loaded.

Every command and helper that reads a daemon takes the same options and variables, which only this module reads.

Standard library only.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from swtrace.errors import SettingsError
from swtrace.settings import absolute

VARIABLES = {
    "ca": "SWTRACE_CA",
    "user": "SWTRACE_USER",
    "password_file": "SWTRACE_PASSWORD_FILE",
    "cert": "SWTRACE_CERT",
    "key": "SWTRACE_KEY",
}
"""The environment variable of each field of :class:`Credentials`."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client of a daemon shows and trusts. Files are read at each connection, so they may be renewed."""

    ca: Path | None = None
    """CA certificates to trust. None: those of the system."""
    user: str | None = None
    password_file: Path | None = None
    cert: Path | None = None
    """A client certificate."""
    key: Path | None = None
    """Its private key. None: it is in the same file."""
    server_name: str | None = None
    """The name that a daemon's certificate must have. None: the one in the daemon's address."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **options: str | Path | None) -> Credentials:
        """Read the environment. Options of a command take precedence.

        Raises:
            SettingsError: a file cannot be used, or a part is missing.
        """
        given: dict[str, str | Path] = {}
        for field, variable in VARIABLES.items():
            text = environ.get(variable, "").strip()
            if (option := options.get(field)) is not None:
                given[field] = option
            elif text:
                given[field] = text if field == "user" else absolute(text)
        credentials = cls(**given)  # type: ignore[arg-type]  # each has its field's type
        credentials.authorization()
        credentials.context()
        return credentials

    def authorization(self) -> str | None:
        """Return the value of the Authorization header; None without a user.

        Raises:
            SettingsError: user or password is missing or cannot be used.
        """
        if self.user is None and self.password_file is None:
            return None
        if self.user is None or self.password_file is None:
            missing = "user" if self.user is None else "password_file"
            raise SettingsError(f"a user needs a password, and a password a user: {_both(missing)} is missing")
        if ":" in self.user:
            raise SettingsError(f"{_both('user')}: {self.user!r} must not contain a colon")
        try:
            password = self.password_file.read_bytes().strip()
        except OSError as error:
            raise SettingsError(f"{_both('password_file')}: {self.password_file}: {error.strerror}") from error
        if not password:
            raise SettingsError(f"{_both('password_file')}: {self.password_file} is empty")
        return f"Basic {base64.b64encode(self.user.encode() + b':' + password).decode()}"

    def context(self) -> ssl.SSLContext:
        """Return a context for connections to a daemon.

        Raises:
            SettingsError: a file cannot be used.
        """
        context = _Context.expecting(self.server_name)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is None:
            context.load_default_certs()
        else:
            load_ca(context, self.ca, _both("ca"))
        if self.cert is not None:
            load_certificate(context, self.cert, self.key, _both("cert"))
        elif self.key is not None:
            raise SettingsError(f"{_both('key')} needs {_both('cert')}")
        return context


class _Context(ssl.SSLContext):
    """A context for connections to an address whose certificate has another name."""

    server_name: str | None

    @classmethod
    def expecting(cls, server_name: str | None) -> _Context:
        """Return a context that expects this name in each certificate; None for that of the address."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.server_name = server_name
        return context

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Begin a connection."""
        if self.server_name is not None:
            options["server_hostname"] = self.server_name
        return super().wrap_socket(*arguments, **options)


ANONYMOUS = Credentials()
"""No credentials; trusts the CAs of the system."""


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None, name: str) -> None:
    """Load a certificate and its private key into a context. Errors are about the setting ``name``.

    Raises:
        SettingsError: a file cannot be read or used.
    """
    _check_readable(cert, name)
    files = str(cert)
    if key is not None:
        _check_readable(key, name)
        files += f" with key {key}"
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name}: {files}: {_reason(error)}") from error


def load_ca(context: ssl.SSLContext, ca: Path, name: str) -> None:
    """Let a context trust the CA certificates of a file. Errors are about the setting ``name``.

    Raises:
        SettingsError: the file cannot be read or used.
    """
    _check_readable(ca, name)
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise SettingsError(f"{name}: {ca}: {_reason(error)}") from error


def _both(field: str) -> str:
    """Return a field's option and variable, for messages."""
    return f"--{field.replace('_', '-')} ({VARIABLES[field]})"


def _check_readable(file: Path, name: str) -> None:
    # OpenSSL does not say which file it could not open.
    try:
        file.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{name}: {file}: {error.strerror}") from error


def _no_password() -> NoReturn:
    """Refuse an encrypted key, whose password OpenSSL would ask for on the terminal."""
    raise ValueError("the key is encrypted; swtrace cannot ask for its password")


def _reason(error: Exception) -> str:
    if not isinstance(error, ssl.SSLError):
        return str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return f"not a valid PEM file ({(error.reason or str(error)).replace('_', ' ').lower()})"
