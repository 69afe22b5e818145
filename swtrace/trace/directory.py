"""The folder of rings: where it is, how files are named, and when a dead rank's ring is removed.

A dead rank's ring is kept for its readers, but not at the expense of living ranks. Dead rings are bounded in total
size, and the oldest are removed when a new ring finds no room. The ring of a living writer is never removed.

A ring has its final name only once it is complete. Until then its name begins with a dot. Only the writer's lock
decides whether the writer is alive.

Standard library only, because ranks load this module.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from swtrace.errors import SettingsError
from swtrace.trace.header import writer_lives

SUFFIX = ".swt"
PREFIX = "ring-"
UNFINISHED_PREFIX = f".{PREFIX}"

DEFAULT_KEEP_S = 3600.0
"""How long a dead rank's ring is kept for its readers."""
DEAD_BYTES = 1 << 30
"""Most bytes for all dead rings of a folder together, whatever their age: on a tmpfs, they take memory ..."""
DEAD_SHARE = 4
"""... and at most 1 / this of the file system, because others need room in /dev/shm too."""
_UNFINISHED_S = 60.0
"""A younger unfinished ring may belong to a rank that has just created its file and not locked it yet."""

_CAP_READ = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, see capabilities(7)."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is per user, and checked for its owner


def default_directory() -> Path:
    """Return the folder of rings when ``SWTRACE_DIR`` is not set: this user's folder on the host's local tmpfs.

    ``XDG_RUNTIME_DIR`` is not used, because it is removed when the user logs out, although ranks may still run.

    Raises:
        SettingsError: the folder belongs to another user. Only ``SWTRACE_DIR`` may name such a folder.
    """
    directory = _SHARED_MEMORY / f"swtrace-{os.geteuid()}"
    with suppress(FileNotFoundError):
        owner = directory.lstat().st_uid
        if owner != os.geteuid():
            raise SettingsError(f"{directory} belongs to user {owner}: set SWTRACE_DIR to a folder of your own")
    return directory


def memory_folder() -> str | None:
    """Return the parent for a temporary folder of rings; None (the system's default) without a writable tmpfs."""
    return str(_SHARED_MEMORY) if os.access(_SHARED_MEMORY, os.W_OK) else None


def ring_name(run_id: str, rank: int) -> str:
    """Return a new name for a ring: unique, and safe for any run id."""
    run = re.sub(r"[^A-Za-z0-9._]", "_", run_id)[:64]
    return f"{PREFIX}{run}-{rank}-{secrets.token_hex(4)}{SUFFIX}"


def ring_paths(directory: Path) -> tuple[Path, ...]:
    """Return the finished rings of a folder, sorted by name; none if the folder cannot be listed."""
    try:
        return listed(directory)
    except OSError:
        return ()


def listed(directory: Path) -> tuple[Path, ...]:
    """Return the finished rings of a folder, sorted by name; none if there is no such folder.

    Raises:
        OSError: the folder cannot be listed.
    """
    try:
        return tuple(sorted(_scanned(directory, PREFIX)))
    except FileNotFoundError:
        return ()


def folder_problem(directory: Path) -> str:
    """Return why this process could see no rank that makes its ring in the folder; empty if it could see some.

    Only its rank's user can read a ring; with the folder's set-group-ID bit, also the folder's group. So this process
    sees ranks of its own user, ranks of any user in a folder of its group, and all of them if it is privileged.
    """
    try:
        status = directory.stat()
    except FileNotFoundError:
        return _creation_problem(directory)
    except OSError as error:
        return f"{directory}: cannot be listed: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory}: is not a folder"
    if status.st_nlink == 0:
        return f"{directory}: was removed, but is still mounted here: restart this container"
    shared = status.st_mode & stat.S_ISGID and _in_group(status)
    if shared or _own_user_may_write(status) or _reads_everything() or _has_access_list(directory):
        return ""
    group = f" and group {status.st_gid}" if status.st_mode & stat.S_ISGID else ""
    return (
        f"{directory}: user {os.geteuid()} can see no rank here, because only its own user{group} can read a ring "
        f"(folder of user {status.st_uid}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}): "
        f"give the folder to group {os.getegid()} with the set-group-ID bit"
    )


def _creation_problem(directory: Path) -> str:
    """Return why no rank that this process can see can create the folder, which only that rank's user can then read."""
    parent = next(parent for parent in directory.absolute().parents if parent.exists())
    if _own_user_may_write(parent.stat()) or _reads_everything() or _has_access_list(parent):
        return ""
    return f"{directory}: does not exist, and user {os.geteuid()} may not create it"


def ring_access_problem(path: Path) -> str:
    """Return why this user may not read a ring, and what to do about it."""
    try:
        ring, directory = path.lstat(), path.parent.stat()
    except OSError as error:
        return str(error.strerror)
    why = f"user {os.geteuid()} may not read it (owner {ring.st_uid}, mode {stat.S_IMODE(ring.st_mode):04o})"
    if is_hidden_from_group(ring, directory):
        return f"{why}; it was made before its folder was shared: {make_readable(directory.st_gid)}"
    if directory.st_mode & stat.S_ISGID:
        return f"{why}; run as user {ring.st_uid}, or as a member of group {ring.st_gid}"
    return f"{why}; its folder is not shared with a group (no set-group-ID bit)"


def make_readable(group: int) -> str:
    """Return how the folder's group gets to read a ring that was made before the folder was shared with it."""
    return f"run chgrp {group} and chmod g+r on the file; or restart its rank, or let it run steps: it makes a new ring"


def is_hidden_from_group(ring: os.stat_result, directory: os.stat_result) -> bool:
    """Return whether the folder is shared with a group that may not read the ring."""
    readable = ring.st_mode & stat.S_IRGRP and ring.st_gid == directory.st_gid
    return bool(directory.st_mode & stat.S_ISGID and not readable)


def _own_user_may_write(directory: os.stat_result) -> bool:
    """Return whether a rank of this process's user may write there, according to the mode.

    The mode decides, because a reader's own mount may be read-only.
    """
    if directory.st_uid == os.geteuid():
        return True
    return bool(directory.st_mode & (stat.S_IWGRP if _in_group(directory) else stat.S_IWOTH))


def _in_group(file: os.stat_result) -> bool:
    return file.st_gid in {os.getegid(), *os.getgroups()}


def _has_access_list(directory: Path) -> bool:
    """Return whether an access control list may allow more than the mode says."""
    with suppress(OSError):
        return any(name.startswith("system.posix_acl_") for name in os.listxattr(directory))
    return False


def _reads_everything() -> bool:
    """Return whether permissions do not keep this process from reading files."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return effective is not None and bool(int(effective[1], 16) & _CAP_READ)
    return False


@dataclass(frozen=True, slots=True)
class DeadRing:
    """A ring, finished or not, whose writer is dead."""

    path: Path
    last_s: float
    """Time of its last activity, seconds of CLOCK_REALTIME."""
    nbytes: int
    mine: bool
    """Whether it belongs to this user."""


def dead_rings(directory: Path) -> list[DeadRing]:
    """Return the rings whose writers are known to be dead, oldest first."""
    dead = []
    for prefix, at_least_s in ((PREFIX, 0.0), (UNFINISHED_PREFIX, _UNFINISHED_S)):
        for path in _files(directory, prefix):
            with suppress(OSError), opened(path) as descriptor:
                status = os.fstat(descriptor)
                if time.time() - status.st_mtime >= at_least_s and not writer_lives(descriptor):
                    dead.append(DeadRing(path, status.st_mtime, status.st_size, status.st_uid == os.geteuid()))
    return sorted(dead, key=lambda ring: ring.last_s)


def remove(ring: DeadRing) -> bool:
    """Remove a dead ring; return whether that was possible."""
    try:
        ring.path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_expired(directory: Path, keep_s: float = DEFAULT_KEEP_S) -> tuple[DeadRing, ...]:
    """Remove dead rings whose last activity is more than ``keep_s`` seconds ago, and more if they take too much room.

    To get below :data:`DEAD_BYTES` and the :data:`DEAD_SHARE` of the file system, remove this user's oldest ones.
    Keep rings that cannot be removed, such as those of other users.

    Returns:
        The rings that were removed.
    """
    limit_s = time.time() - keep_s
    dead = dead_rings(directory)
    surplus = sum(ring.nbytes for ring in dead) - min(DEAD_BYTES, shutil.disk_usage(directory).total // DEAD_SHARE)
    removed = []
    for ring in dead:
        if (ring.last_s <= limit_s or (surplus > 0 and ring.mine)) and remove(ring):
            removed.append(ring)
            surplus -= ring.nbytes
    return tuple(removed)


def remove_for_room(directory: Path, nbytes: int) -> DeadRing | None:
    """Remove this user's oldest dead ring and return it; None if removing all would not make room for ``nbytes``."""
    mine = [ring for ring in dead_rings(directory) if ring.mine]
    if sum(ring.nbytes for ring in mine) + shutil.disk_usage(directory).free < nbytes:
        return None
    return next((ring for ring in mine if remove(ring)), None)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a ring for reading. Do not follow a symbolic link or block on a pipe.

    Raises:
        OSError: the path cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _files(directory: Path, prefix: str) -> list[Path]:
    try:
        return _scanned(directory, prefix)
    except OSError:
        return []


def _scanned(directory: Path, prefix: str) -> list[Path]:
    with os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(SUFFIX)]
