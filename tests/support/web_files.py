"""A web configuration file, with certificates and hashes made for the test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bcrypt
import trustme
import yaml

PASSWORD = "open sesame"  # noqa: S105 (of a test)


@cache
def hashed(password: str = PASSWORD) -> str:
    """Return a bcrypt hash of a password, of the lowest cost and with always the same salt."""
    return bcrypt.hashpw(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu").decode()


@dataclass(frozen=True)
class WebFiles:
    """A folder with a web configuration file and what it names, and with files for clients."""

    folder: Path
    authority: trustme.CA

    @classmethod
    def make(cls, folder: Path) -> WebFiles:
        """Make a CA, a server's certificate, a client's, a password file, and a web configuration with user alice."""
        folder.mkdir()
        files = cls(folder, trustme.CA())
        files.authority.cert_pem.write_to_path(folder / "ca.pem")
        (folder / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
        files.renew()
        files.issue(files.authority, "client.pem")
        files.write()
        return files

    @property
    def config(self) -> Path:
        """The web configuration file."""
        return self.folder / "web.yml"

    def renew(self) -> None:
        """Give the server a new certificate and key."""
        leaf = self.authority.issue_cert("localhost", "127.0.0.1")
        leaf.private_key_pem.write_to_path(self.folder / "server.key")
        leaf.cert_chain_pems[0].write_to_path(self.folder / "server.pem")

    def issue(self, authority: trustme.CA, name: str) -> Path:
        """Return a new file with a client's certificate and key."""
        file = self.folder / name
        authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(file)
        return file

    def write(self, *, users: dict[str, str] | None = None, tls: bool = True, **more_tls: object) -> None:
        """Replace the web configuration. Without ``users``, alice is the only one; none if it is empty."""
        users = {"alice": hashed()} if users is None else users
        section = {"cert_file": "server.pem", "key_file": "server.key", **more_tls}
        document = {
            **({"tls_server_config": section} if tls else {}),
            **({"basic_auth_users": users} if users else {}),
        }
        self.config.write_text(yaml.safe_dump(document), encoding="utf-8")

    def trust(self, client: Path | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts the CA, and shows a certificate if one is given."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if client is not None:
            context.load_cert_chain(client)
        return context

    def settings(self) -> dict[str, str]:
        """Return the variables of a client that may sign in."""
        return {
            "SWTRACE_CA": str(self.folder / "ca.pem"),
            "SWTRACE_USER": "alice",
            "SWTRACE_PASSWORD_FILE": str(self.folder / "password"),
        }
