"""The web configuration file: whom the daemon serves, in the format of Prometheus' exporter-toolkit.

The file, its certificates and its keys are read again when one of them changes. A file that cannot be used is an error
for as long as it lasts, so nobody is served on outdated or missing terms. Nor can a change take a protection away: a
file that is only half written looks just like that.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swtrace.credentials import load_ca, load_certificate
from swtrace.errors import SettingsError

_log = logging.getLogger(__name__)

_SECTIONS = ("tls_server_config", "basic_auth_users")
_TLS_KEYS = ("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version", "max_version")
_TLS_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,  # Go asks for a certificate then, but accepts any and none
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_ANY_CERTIFICATE = "RequireAnyClientCert"
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}")
"""A bcrypt hash whose check takes at most some seconds: each step of its cost doubles the time."""

_Signature = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The content of a web configuration file."""

    users: Mapping[str, bytes]
    """The bcrypt hash of each user's password. If empty, no password is needed."""
    tls: ssl.SSLContext | None
    files: tuple[Path, ...]
    """Every file that was read."""

    @property
    def protections(self) -> frozenset[str]:
        """What keeps strangers out, by the key that asks for it."""
        asked = {
            "basic_auth_users": bool(self.users),
            "tls_server_config": self.tls is not None,
            "client_auth_type": self.tls is not None and self.tls.verify_mode is ssl.CERT_REQUIRED,
        }
        return frozenset(key for key, protects in asked.items() if protects)

    @classmethod
    def read(cls, path: Path) -> WebConfig:
        """Read a file and the certificates that it names.

        Raises:
            SettingsError: it cannot be read, or has a key or a value that swtrace does not know.
        """
        document = _document(path)
        _refuse_other_keys(document, _SECTIONS, str(path))
        if not document:
            raise SettingsError(f"{path} is empty; it must have {' or '.join(_SECTIONS)}, or both")
        tls: ssl.SSLContext | None = None
        named: tuple[Path, ...] = ()
        if "tls_server_config" in document:
            tls, named = _tls(document["tls_server_config"], path)
        users = _users(document["basic_auth_users"], path) if "basic_auth_users" in document else {}
        return cls(users, tls, (path, *named))


class WebConfigFile:
    """A web configuration file that is read again when it changes. Belongs to one thread.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = WebConfig.read(path)
        self._signature: _Signature = ()  # so that the first use compares all files, including those just learnt of
        self._start = self._config.protections
        self._problem: str | None = None

    @property
    def tls(self) -> bool:
        """Whether the daemon speaks TLS. This does not change while it runs."""
        return "tls_server_config" in self._start

    @property
    def passwords(self) -> bool:
        """Whether the daemon has asked for passwords since its start."""
        return "basic_auth_users" in self._start

    def current(self) -> WebConfig:
        """Return the configuration as it is in the file now.

        Raises:
            SettingsError: the file cannot be used as it is now.
        """
        signature = _signature(self._config.files)
        # A problem may lie in a file that is not known yet, so it is looked for again until it is gone.
        if signature != self._signature or self._problem is not None:
            self._signature = signature
            self._read_again()
        if self._problem is not None:
            raise SettingsError(self._problem)
        return self._config

    def _read_again(self) -> None:
        try:
            config = WebConfig.read(self._path)
            self._refuse_fewer_protections(config)
        except SettingsError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("%s; every request is refused until this is corrected", error)
            return
        if config.files != self._config.files:
            self._signature = ()
        if self._problem is not None:
            _log.warning("%s can be used again, and requests are served", self._path)
        self._config, self._problem = config, None

    def _refuse_fewer_protections(self, config: WebConfig) -> None:
        if missing := self._start - config.protections:
            raise SettingsError(
                f"{self._path} no longer asks for what {', '.join(sorted(missing))} asked for; "
                "restart the daemon to serve without it"
            )
        if config.tls is not None and not self.tls:
            raise SettingsError(f"{self._path} now has tls_server_config; restart the daemon to serve with TLS")


def _document(path: Path) -> Mapping[Any, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        # The error's own text quotes the file, which may hold secrets.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}," if mark is not None else ""
        raise SettingsError(f"{path}{where} is not valid YAML") from None
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise SettingsError(f"{path} must be a mapping with {' or '.join(_SECTIONS)}, or both")
    return document


def _refuse_other_keys(mapping: Mapping[Any, Any], keys: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in keys:
            raise SettingsError(f"{where}: {key!r} is not supported; the keys are: {', '.join(keys)}")


def _users(section: object, path: Path) -> dict[str, bytes]:
    where = f"{path}: basic_auth_users"
    if not isinstance(section, Mapping) or not section:
        raise SettingsError(f"{where} must map at least one user to the bcrypt hash of their password")
    users = {}
    for user, hashed in section.items():
        if not isinstance(user, str) or not user or ":" in user:
            raise SettingsError(f"{where}: user {user!r} must be text without a colon; quote a number")
        # Never quote the value: someone may have written the password itself.
        if not isinstance(hashed, str) or not _HASH.fullmatch(hashed):
            raise SettingsError(
                f"{where}: the value of user {user!r} must be a bcrypt hash with a cost from 4 to 15; "
                f"make one with: htpasswd -nBC 10 {user}"
            )
        users[user] = hashed.encode()
    return users


def _tls(section: object, path: Path) -> tuple[ssl.SSLContext, tuple[Path, ...]]:
    """Return a context for connections, and the files that it was made from."""
    where = f"{path}: tls_server_config"
    if not isinstance(section, Mapping):
        raise SettingsError(f"{where} must be a mapping with at least cert_file and key_file")
    _refuse_other_keys(section, _TLS_KEYS, where)
    cert, key = _file(section, "cert_file", path), _file(section, "key_file", path)
    if cert is None or key is None:
        raise SettingsError(f"{where} must have cert_file and key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = _TLS_VERSIONS[_word(section, "min_version", _TLS_VERSIONS, "TLS12", where)]
    context.maximum_version = _TLS_VERSIONS[_word(section, "max_version", _TLS_VERSIONS, "TLS13", where)]
    if context.minimum_version > context.maximum_version:
        raise SettingsError(f"{where}: min_version must not be above max_version")
    load_certificate(context, cert, key, where)
    if section.get("client_auth_type") == _ANY_CERTIFICATE:
        raise SettingsError(
            f"{where}: client_auth_type={_ANY_CERTIFICATE!r} is not supported, because it keeps nobody out; "
            "use RequireAndVerifyClientCert with client_ca_file"
        )
    asked = _word(section, "client_auth_type", _CLIENT_AUTH, "NoClientCert", where)
    ca = _file(section, "client_ca_file", path)
    verifies = _CLIENT_AUTH[asked] is not ssl.CERT_NONE
    if verifies != (ca is not None):
        raise SettingsError(
            f"{where}: client_auth_type={asked!r} {'needs' if verifies else 'does not use'} client_ca_file"
        )
    if ca is not None:
        load_ca(context, ca, f"{where}.client_ca_file")
        context.verify_mode = _CLIENT_AUTH[asked]
    return context, (cert, key) if ca is None else (cert, key, ca)


def _file(section: Mapping[Any, Any], key: str, path: Path) -> Path | None:
    """Return the file that a key names; a relative path starts at the configuration file's folder."""
    named = section.get(key)
    if named is None:
        return None
    if not isinstance(named, str) or not named or "\n" in named:  # not quoted: it may be the key itself
        raise SettingsError(f"{path}: tls_server_config.{key} must be the path of a PEM file")
    return path.parent / named


def _word(section: Mapping[Any, Any], key: str, words: Mapping[str, object], default: str, where: str) -> str:
    word = section.get(key, default)
    if not isinstance(word, str) or word not in words:
        raise SettingsError.of(f"{where}.{key}", word, f"one of: {', '.join(words)}")
    return word


def _signature(files: tuple[Path, ...]) -> _Signature:
    """Return what changes when one of the files does."""
    return tuple(map(_signature_of, files))


def _signature_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
