"""The doctor asks what answers at the daemon's address."""

from __future__ import annotations

import socket

import pytest

from swtrace.cli.doctor.check_daemon import daemon
from swtrace.cli.doctor.diagnosis import State
from tests.cli.doctor.conftest import Doctor
from tests.support.commands import StartSwtrace
from tests.support.damaged_answers import DAMAGED, answering


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
