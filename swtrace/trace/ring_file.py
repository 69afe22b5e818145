"""The file of a ring: how it gets its room, its lock and its name, and whether readers can still find it."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from swtrace.trace.directory import PREFIX, UNFINISHED_PREFIX, DeadRing, remove_expired, remove_for_room

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def publish(path: Path, size: int, fill: Callable[[mmap.mmap], None], keep_s: float) -> tuple[int, mmap.mmap]:
    """Create a ring's file and return its locked descriptor and its mapping. It gets its name when it is complete.

    Remove expired dead rings first, then this user's oldest dead rings for as long as there is no room.
    """
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _log_removed(directory, remove_expired(directory, keep_s))
    while True:
        try:
            return _make(path, size, fill)
        except OSError as error:
            removed = remove_for_room(directory, size) if error.errno in _NO_ROOM else None
            if removed is None:
                raise
            _log_removed(directory, (removed,))


def _log_removed(directory: Path, removed: Sequence[DeadRing]) -> None:
    if removed:
        logger.warning(
            "swtrace: removed rings of dead ranks from %s (past SWTRACE_RING_KEEP, or to make room), %d bytes: %s",
            directory,
            sum(ring.nbytes for ring in removed),
            ", ".join(ring.path.name for ring in removed),
        )


def _make(path: Path, size: int, fill: Callable[[mmap.mmap], None]) -> tuple[int, mmap.mmap]:
    unfinished = path.with_name(path.name.replace(PREFIX, UNFINISHED_PREFIX, 1))
    mode = 0o640 if path.parent.stat().st_mode & stat.S_ISGID else 0o600
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Reserve the whole ring or fail here: a later store into a page that tmpfs cannot provide is a SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
        mapping = _map(unfinished, size)
        fill(mapping)
        unfinished.rename(path)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            unfinished.unlink()
        raise
    return descriptor, mapping


def _map(path: Path, size: int) -> mmap.mmap:
    """Map a file through a separate descriptor, because a mapping keeps its open file, and that file's locks, alive."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # MAP_POPULATE takes the page faults here instead of on the hot path.
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)


def is_removed(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` no longer names the file open under ``descriptor``; False if that cannot be checked."""
    try:
        named = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_ino, named.st_dev) != (mine.st_ino, mine.st_dev)


def is_hidden(path: Path, descriptor: int) -> bool:
    """Return whether a ring's folder is shared with a group that cannot read it; False if that cannot be checked."""
    with suppress(OSError):
        return bool(path.parent.stat().st_mode & stat.S_ISGID and not os.fstat(descriptor).st_mode & stat.S_IRGRP)
    return False
