"""The web configuration file: what it may say, what is refused, and what counts when it changes."""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from swtrace.daemon.web_config import WebConfig, WebConfigFile
from swtrace.errors import SettingsError
from tests.support.web_files import WebFiles, hashed

TLS = {"cert_file": "server.pem", "key_file": "server.key"}


@pytest.fixture
def web(tmp_path: Path) -> WebFiles:
    """Files for a daemon with TLS and user alice."""
    return WebFiles.make(tmp_path / "web")


def test_the_file_of_an_exporter_is_read(web: WebFiles) -> None:
    """TLS versions, client certificates and users are read; relative paths start at the file's folder."""
    web.write(
        min_version="TLS13", max_version="TLS13", client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem"
    )
    config = WebConfig.read(web.config)
    assert config.tls is not None
    assert config.tls.minimum_version is config.tls.maximum_version is ssl.TLSVersion.TLSv1_3
    assert config.tls.verify_mode is ssl.CERT_REQUIRED
    assert config.users == {"alice": hashed().encode()}
    assert config.files == tuple(web.folder / name for name in ("web.yml", "server.pem", "server.key", "ca.pem"))


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ("NoClientCert", ssl.CERT_NONE),
        ("RequestClientCert", ssl.CERT_NONE),
        ("VerifyClientCertIfGiven", ssl.CERT_OPTIONAL),
        ("RequireAndVerifyClientCert", ssl.CERT_REQUIRED),
    ],
)
def test_go_names_what_clients_must_show(web: WebFiles, asked: str, mode: ssl.VerifyMode) -> None:
    """Each of Go's names has the mode that lets in the same clients."""
    ca = None if mode is ssl.CERT_NONE else "ca.pem"
    web.write(client_auth_type=asked, client_ca_file=ca)
    config = WebConfig.read(web.config)
    assert config.tls is not None
    assert config.tls.verify_mode is mode


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
def test_hashes_of_all_tools_are_taken(web: WebFiles, prefix: str) -> None:
    """Htpasswd writes 2y, Go 2a and Python 2b for the same algorithm."""
    same = hashed().replace("$2b$", f"${prefix}$")
    web.write(users={"alice": same})
    assert WebConfig.read(web.config).users["alice"] == same.encode()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "is empty; it must have tls_server_config or basic_auth_users, or both"),
        ({"tls": TLS}, "'tls' is not supported; the keys are: tls_server_config, basic_auth_users"),
        ({"http_server_config": {"http2": True}}, "'http_server_config' is not supported"),
        ({"tls_server_config": {}}, "tls_server_config must have cert_file and key_file"),
        ({"tls_server_config": None}, "tls_server_config must be a mapping"),
        ({"tls_server_config": {**TLS, "cipher_suites": []}}, "'cipher_suites' is not supported; the keys are: cert_"),
        ({"tls_server_config": {**TLS, "client_allowed_sans": ["x"]}}, "'client_allowed_sans' is not supported"),
        ({"tls_server_config": {**TLS, "min_version": "TLS10"}}, "min_version='TLS10': must be one of: TLS12, TLS13"),
        ({"tls_server_config": {**TLS, "min_version": "TLS13", "max_version": "TLS12"}}, "must not be above"),
        ({"tls_server_config": {**TLS, "client_auth_type": "Yes"}}, "client_auth_type='Yes': must be one of: NoClient"),
        ({"tls_server_config": {**TLS, "client_auth_type": "RequireAnyClientCert"}}, "it keeps nobody out"),
        ({"tls_server_config": {**TLS, "client_auth_type": "RequireAndVerifyClientCert"}}, "needs client_ca_file"),
        ({"tls_server_config": {**TLS, "client_ca_file": "ca.pem"}}, "'NoClientCert' does not use client_ca_file"),
        ({"tls_server_config": {**TLS, "cert_file": "none.pem"}}, "none.pem: No such file"),
        ({"tls_server_config": {**TLS, "key_file": 7}}, "key_file must be the path of a PEM file"),
        ({"tls_server_config": {**TLS, "key_file": "-----BEGIN\nhunter2"}}, "key_file must be the path of a PEM file"),
        ({"tls_server_config": {**TLS, "cert_file": "password"}}, "not a valid PEM file"),
        ({"tls_server_config": {**TLS, "key_file": "client.pem"}}, "the key does not belong to the certificate"),
        ({"basic_auth_users": {}}, "must map at least one user"),
        ({"basic_auth_users": None}, "must map at least one user"),
        ({"basic_auth_users": {7: hashed()}}, "user 7 must be text"),
        ({"basic_auth_users": {"a:b": hashed()}}, "without a colon"),
        (["basic_auth_users"], "must be a mapping"),
    ],
)
def test_what_cannot_be_kept_is_refused(web: WebFiles, document: Any, says: str) -> None:
    """Unknown, unsupported and contradictory content is an error that names the file and the key."""
    web.config.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(SettingsError, match=f"^{re.escape(str(web.config))}") as refused:
        WebConfig.read(web.config)
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: hunter2}",
        f"basic_auth_users: {{alice: '{hashed().replace('$04$', '$31$')}hunter2'}}",
        "basic_auth_users:\n  alice: hunter2\n bob: hunter2\n",
        "basic_auth_users: {alice: [hunter2]}",
        "basic_auth_users: {alice: *hunter2}",
        "basic_auth_users: {alice: !hunter2 x}",
    ],
)
def test_a_password_in_the_file_is_not_quoted(web: WebFiles, text: str) -> None:
    """Errors never quote the value of a user, because it may be the password itself."""
    web.config.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        WebConfig.read(web.config)
    assert "hunter2" not in str(refused.value)


def test_an_encrypted_key_is_refused(web: WebFiles) -> None:
    """A key that needs a password is an error; OpenSSL does not ask for it on the terminal."""
    from cryptography.hazmat.primitives import serialization

    pem = (web.folder / "server.key").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (web.folder / "server.key").write_bytes(encrypted)
    with pytest.raises(SettingsError, match="the key is encrypted"):
        WebConfig.read(web.config)


def test_an_unchanged_file_is_read_once(web: WebFiles) -> None:
    """The same object is returned until a file changes, so a request costs no parsing."""
    file = WebConfigFile(web.config)
    assert file.current() is file.current()


@pytest.mark.parametrize("protection", ["tls_server_config", "basic_auth_users", "client_auth_type"])
def test_a_change_takes_no_protection_away(web: WebFiles, protection: str) -> None:
    """A file that lost its users, its TLS or its client certificates is refused, because it may be half written."""
    required: dict[str, Any] = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
    web.write(**required)
    file = WebConfigFile(web.config)
    if protection == "tls_server_config":
        web.write(tls=False)
    elif protection == "basic_auth_users":
        web.write(users={}, **required)
    else:
        web.write()
    with pytest.raises(SettingsError, match=f"{protection}.*restart the daemon"):
        file.current()


def test_tls_is_not_added_to_a_running_daemon(web: WebFiles) -> None:
    """A daemon that began without TLS refuses a file that asks for it, rather than serve without."""
    web.write(tls=False)
    file = WebConfigFile(web.config)
    web.write()
    with pytest.raises(SettingsError, match="restart the daemon to serve with TLS"):
        file.current()


def test_a_broken_file_is_reported_once_and_its_repair_too(web: WebFiles, caplog: pytest.LogCaptureFixture) -> None:
    """While the file cannot be used, every use is an error; the log says when that began and ended."""
    file = WebConfigFile(web.config)
    good = web.config.read_text(encoding="utf-8")
    web.config.write_text("", encoding="utf-8")
    for _ in range(3):
        with pytest.raises(SettingsError, match="is empty"):
            file.current()
    web.config.write_text(good, encoding="utf-8")
    assert file.current().users
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


def test_a_file_that_was_missing_is_noticed_when_it_appears(web: WebFiles) -> None:
    """The configuration may name a certificate before it exists."""
    file = WebConfigFile(web.config)
    web.write(client_auth_type="VerifyClientCertIfGiven", client_ca_file="later.pem")
    with pytest.raises(SettingsError, match=r"later\.pem"):
        file.current()
    trustme.CA().cert_pem.write_to_path(web.folder / "later.pem")
    assert web.folder / "later.pem" in file.current().files


def test_a_renewed_certificate_is_a_change(web: WebFiles) -> None:
    """The files that the configuration names are watched too."""
    file = WebConfigFile(web.config)
    before = file.current()
    web.renew()
    assert file.current() is not before
