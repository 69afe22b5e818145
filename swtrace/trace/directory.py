"""Where rings live: the folder, the files' names, and when a dead rank's ring is removed.

A ring is only ever found under its final name when it is complete; while it is being made it has a
dotted name. Whether its writer lives is told by the writer's lock alone.

Standard library only: ranks load it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swtrace.errors import SettingsError
from swtrace.trace.header import writer_lives

SUFFIX = ".swt"
PREFIX = "ring-"
UNFINISHED_PREFIX = f".{PREFIX}"

DEFAULT_KEEP_S = 3600.0
"""How long a dead rank's ring is kept for its readers."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is per user, and checked for its owner


def default_directory() -> Path:
    """Return the folder of rings: ``SWTRACE_DIR``, else a folder of this user on the host's local tmpfs.

    Not ``XDG_RUNTIME_DIR``: that goes when its user logs out, while what was started under nohup runs on.

    Raises:
        SettingsError: somebody else has made a folder of that name; only ``SWTRACE_DIR`` may name a foreign one.
    """
    configured = os.environ.get("SWTRACE_DIR")
    if configured:
        return Path(configured)
    directory = _SHARED_MEMORY / f"swtrace-{os.geteuid()}"
    with suppress(FileNotFoundError):
        owner = directory.lstat().st_uid
        if owner != os.geteuid():
            raise SettingsError(f"{directory} belongs to user {owner}: set SWTRACE_DIR to a folder of your own")
    return directory


def ring_name(run_id: str, rank: int) -> str:
    """Return a new name for a ring: unique, and safe whatever the run id contains."""
    run = re.sub(r"[^A-Za-z0-9._]", "_", run_id)[:64]
    return f"{PREFIX}{run}-{rank}-{secrets.token_hex(4)}{SUFFIX}"


def ring_paths(directory: Path) -> tuple[Path, ...]:
    """Return the finished rings of a folder, in the order of their names; none if it cannot be listed."""
    try:
        return listed(directory)
    except OSError:
        return ()


def listed(directory: Path) -> tuple[Path, ...]:
    """Return the finished rings of a folder, in the order of their names; none if there is no such folder.

    Raises:
        OSError: the folder cannot be listed.
    """
    try:
        return tuple(sorted(_files(directory, PREFIX)))
    except FileNotFoundError:
        return ()


def remove_expired(directory: Path, keep_s: float = DEFAULT_KEEP_S) -> tuple[Path, ...]:
    """Remove rings whose writer is dead and whose last activity is more than ``keep_s`` seconds ago.

    Never touches a ring whose writer lives. What cannot be removed (another user's ring) is left alone.

    Returns:
        What was removed.
    """
    limit = time.time() - keep_s
    removed = []
    paths: list[Path] = []
    with suppress(OSError):
        paths = [*_files(directory, PREFIX), *_files(directory, UNFINISHED_PREFIX)]
    for path in paths:
        with suppress(OSError), opened(path) as descriptor:
            if os.fstat(descriptor).st_mtime <= limit and not writer_lives(descriptor):
                path.unlink()
                removed.append(path)
    return tuple(removed)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a ring for reading, whatever stands there: a link is not followed, a pipe does not block.

    Raises:
        OSError: it cannot be opened, or is not a plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def _files(directory: Path, prefix: str) -> list[Path]:
    with os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(SUFFIX)]
