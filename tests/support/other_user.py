"""Run a program as another user, as a container does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.daemon_command import environment

USER = 9465
"""User and group of the image: neither a user of this machine nor that of the ranks."""


def as_user(user: int, *options: str) -> tuple[str, ...]:
    """Return the beginning of a command that runs the rest as this user and its group."""
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", *options)


def _is_possible() -> bool:
    """Return whether this process can make namespaces and another user can run this interpreter."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount",
        *as_user(USER),
        sys.executable,
        "-c",
        "import swtrace, starlette",
    ]
    return subprocess.run(command, env=environment(), cwd="/", capture_output=True, check=False).returncode == 0


needs_other_users = pytest.mark.skipif(
    not _is_possible(), reason="needs root, namespaces, and an interpreter that any user can run"
)
