"""The folder of rings: ranks and every reader use the same one, however ``SWTRACE_DIR`` is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import StartSwtrace, Swtrace
from tests.support.patience import patience

RANK = """
import swtrace.series.recording as recording
recorder = recording.process_recorder("one-folder", 0)
print(recorder.path, flush=True)
input()
"""
OPENED = """
import swtrace
with swtrace.open() as session:
    session.facts()
    print([rank.ring.path for rank in session.observe().ranks])
"""


def python(code: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a script; it has no answer to its questions before it is given one."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("text", ["~/rings", "rings"])
def test_a_rank_and_every_reader_use_one_folder(
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    swtrace: Swtrace,
    start_swtrace: StartSwtrace,
) -> None:
    """An env file, a systemd unit or a compose file hands over ``~`` and relative paths as they are written."""
    monkeypatch.chdir(tmp_path)
    environment.update({"HOME": str(tmp_path), "SWTRACE_DIR": text})
    with python(RANK, environment) as rank:
        assert rank.stdout
        ring = Path(rank.stdout.readline().strip())
        daemon = json.loads(start_swtrace("daemon", "--json").stdout.readline())  # type: ignore[union-attr]
        watched = json.loads(swtrace("top", "--once", "--json", "--wait", "0").stdout)
        findings = json.loads(swtrace("doctor", "--quick", "--json").stdout)["findings"]
        opened, _ = python(OPENED, environment).communicate(timeout=patience())
        rank.communicate("\n", timeout=patience())

    assert ring.parent == tmp_path / "rings"
    assert daemon["directory"] == str(ring.parent)
    assert [source["name"] for source in watched["sources"]] == [str(ring.parent)]
    assert watched["runs"] == ["one-folder"]
    assert ring.name in {finding["subject"] for finding in findings}
    assert next(each["detail"] for each in findings if each["subject"] == "ring folder").startswith(str(ring.parent))
    assert str(ring) in opened
