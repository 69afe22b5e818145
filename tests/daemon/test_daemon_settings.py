"""Settings of the daemon: what is read from the environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.daemon.daemon_settings import DaemonSettings, Listen, watch_every, watch_list
from swtrace.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9465", "127.0.0.1", 9465),
        ("localhost:0", "localhost", 0),
        ("[::1]:9465", "::1", 9465),
        (":9465", "", 9465),
    ],
)
def test_listen_is_read(text: str, host: str, port: int) -> None:
    """An address is a host and a port, with IPv6 in brackets, and is written as it was read."""
    listen = Listen.parse(text)
    assert (listen.host, listen.port) == (host, port)
    assert str(listen) == text


@pytest.mark.parametrize(
    "text", ["", "9465", "localhost", "localhost:", "localhost:x", "::1:9465", "a:65536", "a:-1", f"a:{'9' * 5000}"]
)
def test_unusable_listen_is_refused(text: str) -> None:
    """An invalid address is refused with the name of its setting or option."""
    with pytest.raises(SettingsError, match=r"^SWTRACE_LISTEN="):
        Listen.parse(text)
    with pytest.raises(SettingsError, match=r"^--listen="):
        DaemonSettings.from_environment({}, source=Path("/rings"), listen=text)


def test_defaults() -> None:
    """Without settings, the daemon binds to loopback and contacts no other host."""
    settings = DaemonSettings.from_environment({}, source=Path("/rings"))
    assert str(settings.listen) == "127.0.0.1:9465"
    assert settings.spans.exporters == ()


def test_argument_wins_over_environment() -> None:
    """An address on the command line overrides that of the environment."""
    environ = {"SWTRACE_LISTEN": "127.0.0.1:1"}
    settings = DaemonSettings.from_environment(environ, source=Path("/rings"), listen="127.0.0.1:2")
    assert settings.listen.port == 2


def test_what_is_watched_is_read() -> None:
    """Addresses come from the option, else from the variable; a name may stand for several daemons."""
    environ = {"SWTRACE_WATCH": " gpu-a, https://gpu-b:1,dns+daemons.ns.svc ", "SWTRACE_WATCH_EVERY": "4"}
    assert watch_list(environ) == ("gpu-a:9465", "https://gpu-b:1", "dns+daemons.ns.svc:9465")
    assert watch_list(environ, "dns+https://gpu-c") == ("dns+https://gpu-c:9465",)
    assert watch_every(environ) == 4
    assert (watch_list({"SWTRACE_WATCH": ""}), watch_every({})) == ((), 16)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SWTRACE_WATCH", "gpu-a:port"),
        ("SWTRACE_WATCH", ","),
        ("SWTRACE_WATCH", "gpu-a,dns+"),
        ("SWTRACE_WATCH_EVERY", "0"),
        ("SWTRACE_WATCH_EVERY", "two"),
        ("SWTRACE_WATCH_EVERY", "9" * 5000),
    ],
)
def test_an_unusable_watch_is_refused(name: str, text: str) -> None:
    """An invalid variable is refused with its name."""
    read = watch_list if name == "SWTRACE_WATCH" else watch_every
    with pytest.raises(SettingsError, match=f"^{name}="):
        read({name: text})
