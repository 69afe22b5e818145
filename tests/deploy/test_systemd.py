"""The daemon's service is correct and confined; its user and its folder agree with the image and compose."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.deployment import DEPLOY, DOCKERFILE, run, services

UNITS = DEPLOY / "systemd"
SERVICE = UNITS / "swtrace-daemon.service"
PROGRAM = "/opt/swtrace/bin/swtrace"
with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def settings() -> dict[str, list[str]]:
    """Return the values of every key of the unit's [Service] section."""
    found: dict[str, list[str]] = {}
    section = SERVICE.read_text(encoding="utf-8").partition("[Service]\n")[2].partition("\n[")[0]
    for line in section.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def words(name: str) -> list[str]:
    """Return the words of the one line of a configuration that is no comment."""
    (line,) = (line for line in (UNITS / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return re.sub(r'"[^"]*"', "text", line).split()


@with_systemd
def test_systemd_accepts_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    """The unit has no mistake by systemd's own check, and an exposure below 2 of 10."""
    unit = tmp_path / SERVICE.name
    unit.write_text(SERVICE.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    assert run("sh", "-c", f"systemd-analyze verify --man=no '{unit}' 2>&1") == ""
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit))


def test_service_user_and_folder_agree_with_each_other_and_the_image() -> None:
    """The service runs the image's command as the image's user, over the folder that tmpfiles makes as compose does."""
    unit = settings()
    kind, user, number, *_rest = words("swtrace.sysusers.conf")
    assert (kind, user) == ("u", unit["User"][0])
    assert unit["Group"] == unit["User"]
    assert f"USER {number}:{number}" in DOCKERFILE.read_text(encoding="utf-8")
    kind, folder, mode, _owner, group = words("swtrace.tmpfiles.conf")
    assert (kind, group) == ("d", number)
    assert f"chgrp {number} /run/swtrace && chmod {mode} /run/swtrace" in services()["rings"]["command"][0]
    assert unit["Environment"] == [f"SWTRACE_DIR={folder}"]
    assert services()["daemon"]["volumes"][0]["source"].endswith(f":-{folder}}}")
    assert unit["ExecStart"] == [f"{PROGRAM} daemon"]


def test_unusable_setting_is_not_retried() -> None:
    """The service restarts after a crash, but not after the exit status of an unusable setting."""
    unit = settings()
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == [str(int(ExitCode.USAGE))]


@with_systemd
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another group")
def test_tmpfiles_makes_the_folder_at_boot(tmp_path: Path) -> None:
    """At boot, systemd-tmpfiles makes the folder with the group and bits that let the daemon read all rings."""
    for name in ("etc/passwd", "etc/group"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(f"/{name}", tmp_path / name)
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNITS / "swtrace.tmpfiles.conf"))
    made = (tmp_path / "dev/shm/swtrace").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o3777, 0, 9465)
