"""The image starts a daemon that is found healthy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.daemon_command import environment
from tests.support.deployment import DOCKERFILE, image_settings, run, services
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.span_receiver import SpanReceiver, collector, free_port


def test_dockerfile_passes_hadolint() -> None:
    """Hadolint reports nothing about the Dockerfile."""
    assert run("hadolint", str(DOCKERFILE)) == ""


def succeeds(command: list[str], settings: dict[str, str]) -> bool:
    """Return whether a command ends with status 0."""
    return subprocess.run(command, env=settings, capture_output=True, check=False).returncode == 0


def test_a_change_of_the_code_installs_no_dependency_again() -> None:
    """Before the code is copied, everything that it depends on is installed; after that, only swtrace itself."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    before, *after = text.split("COPY . .")
    assert "pip install -c constraints.txt -r dependencies.txt" in before
    assert "pip install" in "".join(after)
    for part in after:
        for installed in re.findall(r"pip install (.*)", part.partition("FROM")[0]):
            assert installed == "--no-deps ."


def test_image_starts_a_daemon_that_its_healthcheck_finds_well(tmp_path: Path) -> None:
    """The image's environment and command, and compose's, start a daemon that exports through a real collector."""
    settings, command, healthcheck = image_settings("daemon")
    assert command == ["swtrace", "daemon"]
    assert settings["SWTRACE_DIR"] == services()["daemon"]["volumes"][0]["target"]
    port = free_port()
    rings = tmp_path / "rings"
    run_ = RecordedRun(rings)
    receiver = SpanReceiver()
    check = [sys.executable, *healthcheck[1:]]
    with collector(tmp_path, receiver) as (_grpc, http):
        inside = environment(
            SWTRACE_DIR=str(rings),
            SWTRACE_LISTEN=settings["SWTRACE_LISTEN"].replace("9465", str(port)),
            OTEL_EXPORTER_OTLP_ENDPOINT=http,
            SWTRACE_TRACE_SAMPLE="1",
            SWTRACE_SLOW_STEP="",
        )
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=inside,
            stdout=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: succeeds(check, inside), "the healthcheck to succeed")
            run_.write(5)
            # Two ranks: a step, five broadcasts and five waits each; the first step's first layer was prefilled.
            spans = 5 * 2 * 11 - 2
            assert len(receiver.wait_for(spans)) == spans
        finally:
            process.terminate()
            assert process.wait(patience()) == 0
        assert not succeeds(check, inside)
    receiver.close()
    run_.close()
