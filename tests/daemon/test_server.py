"""The daemon's life: it binds first, writes nothing, and ends in order with everything exported."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace import __version__
from tests.support.daemon_command import daemon, environment
from tests.support.patience import eventually, patience
from tests.support.recorded_run import SPANS_PER_STEP, RecordedRun
from tests.support.span_receiver import SpanReceiver
from tests.support.web_files import WebFiles


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """A run of two ranks without records yet."""
    run = RecordedRun(tmp_path / "rings")
    yield run
    run.close()


def test_sigterm_exports_what_there_is(run: RecordedRun, receiver: SpanReceiver) -> None:
    """Spans of an incomplete batch, and steps that a rank has not ended, are exported before the daemon ends."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with daemon(run.directory, **settings) as command:
        eventually(lambda: command.metric("swtrace_rank_up") == 2, "the ranks")
        run.write(4)
        run.write_rank(0, 4)
        assert receiver.spans() == ()
        assert command.end() == ""
        assert command.process.returncode == 0
    assert len(receiver.spans()) == 4 * SPANS_PER_STEP - 2 + 11


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_ends_in_order(run: RecordedRun, number: int) -> None:
    """SIGTERM and Ctrl-C end the daemon with exit code 0 and nothing on stderr."""
    run.write(1)
    with daemon(run.directory) as command:
        assert command.client.get("/healthz").text == "ok\n"
        assert command.end(number) == ""
        assert command.process.returncode == 0


def test_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """A daemon whose port is taken names it, says how to choose another, and exits with code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "swtrace", "daemon", "--dir", str(tmp_path)]
        failed = subprocess.run(
            command,
            env=environment(SWTRACE_LISTEN=address),
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
    assert failed.returncode == 1
    assert address in failed.stderr
    assert "SWTRACE_LISTEN" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_daemon_needs_no_folder_yet(tmp_path: Path) -> None:
    """A daemon started before its ranks finds them as soon as they exist."""
    with daemon(tmp_path / "later") as command:
        assert command.metric("swtrace_rank_up") == 0
        run = RecordedRun(tmp_path / "later")
        eventually(lambda: command.metric("swtrace_rank_up") == 2, "the ranks")
        run.close()


def test_daemon_changes_nothing_in_the_folder(run: RecordedRun) -> None:
    """Reading changes neither bytes nor time stamps of the rings."""
    run.write(3)
    before = folder(run.directory)
    with daemon(run.directory) as command:
        assert command.metric("swtrace_ring_pending_records") == 0
        command.end()
    assert folder(run.directory) == before


def folder(directory: Path) -> list[tuple[str, int, bytes]]:
    """Return the contents and metadata of the files of a folder."""
    return sorted((path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir())


def test_start_up_names_folder_ranks_address_and_version(run: RecordedRun) -> None:
    """One line on stderr says what the daemon watches and where it serves; --json has the same for scripts."""
    run.write(1)
    run.recorders[1].close()
    command = [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", str(run.directory)]
    process = subprocess.Popen(
        [*command, "--json"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    about = json.loads(process.stdout.readline())
    process.terminate()
    _out, err = process.communicate(timeout=patience())
    assert about["ranks"] == {"alive": 1, "ended": 1}
    line = f"swtrace {__version__} watches {run.directory} (1 rank alive, 1 ended) and serves {about['url']}\n"
    assert (err, about["version"], about["pid"]) == (line, __version__, process.pid)


def said_on(listen: str, directory: Path, *arguments: str) -> str:
    """Return what a daemon says on stderr, after its start-up line, when it serves on an address."""
    command = [sys.executable, "-m", "swtrace", "daemon", "--listen", listen, "--dir", str(directory), *arguments]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.terminate()
    _out, err = process.communicate(timeout=patience())
    return "\n".join(line for line in err.splitlines() if not line.startswith("swtrace "))


@pytest.mark.parametrize(
    ("listen", "host"),
    [("0.0.0.0:0", r"0\.0\.0\.0"), (":0", r"0\.0\.0\.0"), ("[::]:0", r"\[::\]")],
    ids=["IPv4", "any", "IPv6"],
)
def test_a_daemon_that_is_open_to_other_hosts_says_so(tmp_path: Path, listen: str, host: str) -> None:
    """Without a web configuration, one warning names where it listens and the option that protects the daemon."""
    said = said_on(listen, tmp_path)
    where = rf"{host}:\d+ \(every interface\)"
    assert re.search(rf"{where} is open to other hosts, without TLS and passwords", said)
    assert "--web-config" in said
    assert "\n" not in said


def test_a_daemon_on_loopback_is_quiet(tmp_path: Path) -> None:
    """On loopback there is nothing to warn of."""
    assert said_on("127.0.0.1:0", tmp_path) == ""


def test_only_passwords_in_clear_are_warned_of(tmp_path: Path) -> None:
    """A web configuration silences the warning, unless passwords would cross the network without TLS."""
    web = WebFiles.make(tmp_path / "web")
    assert said_on("0.0.0.0:0", tmp_path, "--web-config", str(web.config)) == ""
    web.write(tls=False)
    said = said_on("0.0.0.0:0", tmp_path, "--web-config", str(web.config))
    assert re.search(r"0\.0\.0\.0:\d+ \(every interface\) takes passwords over the network without TLS", said)


def test_an_unusable_web_configuration_is_a_usage_error(tmp_path: Path) -> None:
    """A daemon never serves on terms that it could not read: it ends with one line that names file and key."""
    file = tmp_path / "web.yml"
    file.write_text("basic_auth: {}", encoding="utf-8")
    failed = subprocess.run(
        [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", str(tmp_path)],
        env=environment(SWTRACE_WEB_CONFIG=str(file)),
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith(f"swtrace: {file}: 'basic_auth' is not supported")
    assert len(failed.stderr.splitlines()) == 1
