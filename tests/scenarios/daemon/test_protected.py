"""A protected daemon and its clients, as separate processes with real options and variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.testing import read_metrics
from swtrace.testing.metrics import MetricsError
from tests.support.commands import StartSwtrace, Swtrace
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.web_files import PASSWORD, WebFiles, hashed


@pytest.fixture
def run(rings: Path) -> Iterator[RecordedRun]:
    """Two ranks that ran ten steps."""
    run = RecordedRun(rings)
    run.write(10)
    yield run
    run.close()


@pytest.fixture
def web(tmp_path: Path) -> WebFiles:
    """Files of a daemon with TLS and user alice, and of its clients."""
    return WebFiles.make(tmp_path / "web")


def served(start_swtrace: StartSwtrace, web: WebFiles) -> str:
    """Start a protected daemon and return its URL."""
    daemon = start_swtrace("daemon", "--web-config", str(web.config))
    assert daemon.stdout is not None
    url = daemon.stdout.readline().strip()
    assert url.startswith("https://")
    return url


def options(web: WebFiles) -> list[str]:
    """Return the options of a client that may sign in."""
    files = {"--ca": "ca.pem", "--password-file": "password", "--cert": "client.pem"}
    return ["--user", "alice", *(word for option, file in files.items() for word in (option, str(web.folder / file)))]


def test_every_reader_is_served_with_credentials(
    run: RecordedRun,
    web: WebFiles,
    swtrace: Swtrace,
    start_swtrace: StartSwtrace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``top`` and ``record`` with options, the same with variables, and ``read_metrics`` see the run."""
    web.write(client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem")
    url = served(start_swtrace, web)
    run.write(10)
    variables = {**web.settings(), "SWTRACE_CERT": str(web.folder / "client.pem")}
    local = json.loads(swtrace("top", "--json").stdout)["summary"]
    for arguments, extra in ((options(web), {}), ([], variables)):
        printed = swtrace("top", "--json", "--connect", url, *arguments, extra=extra)
        assert json.loads(printed.stdout)["summary"] == local, printed.stderr
    once = swtrace("top", "--once", "--connect", url, *options(web))
    assert (once.returncode, once.stderr) == (0, "")
    assert "PARTLY HIDDEN" in once.stdout
    file = tmp_path / "run.swrec"
    run.close()
    recorded = swtrace("record", "--connect", url, "--until-end", "--json", "-o", str(file), *options(web))
    assert json.loads(recorded.stdout)["ranks"] == 2, recorded.stderr
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert read_metrics(url).value("swtrace_steps_total", rank=0) == 10


@pytest.mark.usefixtures("run")
def test_a_stranger_learns_nothing_but_what_is_missing(
    web: WebFiles, swtrace: Swtrace, start_swtrace: StartSwtrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of the credentials, every reader fails with a line that names the option, and shows no secret."""
    monkeypatch.chdir(tmp_path)
    url = served(start_swtrace, web)
    for name in ("top --once --connect", "record -o x.swrec --connect"):
        for arguments, word in (([], "--ca"), (["--ca", str(web.folder / "ca.pem")], "--user")):
            refused = swtrace(*name.split(), url, *arguments)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert word in refused.stderr
            assert "HIDDEN" not in refused.stderr
            assert PASSWORD not in refused.stderr
    with pytest.raises(MetricsError, match="SWTRACE_CA"):
        read_metrics(url)


@pytest.mark.usefixtures("run")
def test_a_viewer_returns_after_a_change_of_password(
    web: WebFiles, swtrace: Swtrace, start_swtrace: StartSwtrace
) -> None:
    """Both password files are read again: a client that was refused is served once they agree."""
    url = served(start_swtrace, web)
    web.write(users={"alice": hashed("changed")})
    assert "does not accept user" in swtrace("top", "--once", "--connect", url, *options(web)).stderr
    waiting = start_swtrace("top", "--once", "--wait", f"{patience():.0f}", "--connect", url, *options(web))
    (web.folder / "password").write_text("changed", encoding="utf-8")
    out, err = waiting.communicate(timeout=patience())
    assert "PARTLY HIDDEN" in out, err
