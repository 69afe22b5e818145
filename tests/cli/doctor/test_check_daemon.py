"""The doctor asks what answers at the daemon's address."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from swtrace.cli.doctor.check_daemon import daemon
from swtrace.cli.doctor.diagnosis import State
from tests.cli.doctor.conftest import Doctor
from tests.support.commands import StartSwtrace
from tests.support.damaged_answers import DAMAGED, answering
from tests.support.web_files import WebFiles


def test_a_strangers_port_is_broken(doctor: Doctor) -> None:
    """A daemon could not serve there, and what is there is none."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        listen = f"127.0.0.1:{stranger.getsockname()[1]}"
        finding = doctor(broken=True, SWTRACE_LISTEN=listen)["daemon"]
    assert finding["state"] == "broken"
    assert "SWTRACE_LISTEN" in finding["fix"]


def test_a_daemon_that_answers_is_good(doctor: Doctor, start_swtrace: StartSwtrace) -> None:
    """The daemon at the expected address is asked, not guessed at."""
    daemon = start_swtrace("daemon", "--listen", "127.0.0.1:0")
    assert daemon.stdout is not None
    url = daemon.stdout.readline().strip()
    assert doctor(SWTRACE_LISTEN=url.removeprefix("http://"))["daemon"]["state"] == "good"


@pytest.mark.parametrize("damage", ["cut gzip", "no HTTP", "cut body", "nothing", "a list", "no text"])
def test_doctor_says_what_answers_in_a_daemons_place(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer from something that is not a working daemon is a finding and not a traceback."""
    with answering(DAMAGED[damage]) as address:
        monkeypatch.setenv("SWTRACE_LISTEN", address)
        (finding,) = daemon()
    assert finding.state is State.BROKEN
    assert address in finding.detail


def test_a_protected_daemon_is_asked_with_credentials(
    doctor: Doctor, start_swtrace: StartSwtrace, tmp_path: Path
) -> None:
    """With the credentials it is good; without, the finding says that it answers and what to set."""
    web = WebFiles.make(tmp_path / "web")
    protected = {"SWTRACE_WEB_CONFIG": str(web.config)}
    daemon = start_swtrace("daemon", "--listen", "127.0.0.1:0", extra=protected)
    assert daemon.stdout is not None
    listen = daemon.stdout.readline().strip().removeprefix("https://")
    assert doctor(SWTRACE_LISTEN=listen, **protected, **web.settings())["daemon"]["state"] == "good"
    refused = doctor(SWTRACE_LISTEN=listen, **protected)["daemon"]
    assert refused["state"] == "doubtful"
    assert "SWTRACE_CA" in refused["detail"]


def test_a_web_configuration_that_a_daemon_could_not_use_is_broken(doctor: Doctor, tmp_path: Path) -> None:
    """The file is read as the daemon would read it."""
    (tmp_path / "web.yml").write_text("basic_auth_users: {}", encoding="utf-8")
    finding = doctor(broken=True, SWTRACE_WEB_CONFIG=str(tmp_path / "web.yml"))["daemon"]
    assert finding["state"] == "broken"
    assert "basic_auth_users must map at least one user" in finding["detail"]
