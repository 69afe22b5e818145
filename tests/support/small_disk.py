"""A file system with little room, for what happens when it is full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tmpfs(folder: Path, nbytes: int) -> Iterator[None]:
    """Mount a tmpfs of ``nbytes`` at ``folder`` during the block. Skip the test if this user may not mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "swtrace-test", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - found where mount was
