"""The folder in which the ranks of a pull series meet, and in which their layers' bytes lie.

It is on the ranks' host, below the folder of rings, and only its user may enter it. It holds

- a lock file per rank, locked while the rank lives,
- what each rank said at start-up: the first item, the second, and so on,
- the owners' layers: each file is complete as soon as it has its name, and never changes.

Everything stays there until the last living rank leaves. So a rank that restarts can repeat its start-up while the
others run: it finds what they said, says the same again, and maps the same layers. If all ranks were killed, the next
rank that joins removes what they left, or ``swtrace clean`` does.

Joining and leaving are serialised by a lock on the folder itself. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import pickle
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from swtrace.errors import TransportError
from swtrace.units import listed

logger = logging.getLogger(__name__)

PREFIX = "pull-"
"""Share folders are named so, within the folder of rings."""

_LOCK = re.compile(r"rank-\d+\.lock")
_KNOWN = re.compile(r"rank-\d+\.lock|said-\d+-\d+|raw-\d+-\d+|layer-\d+|\.new-\d+")
_MODE = 0o600
_OTHERS = 0o077
_CAREFULLY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FIRST_POLL_S = 0.001
_LONGEST_POLL_S = 0.05
_LEAVE_S = 10.0
"""How long a rank that leaves tries to lock the folder."""
_ENTRY_S = 1.0
"""How long a rank tries to lock its file, which another rank may be probing at that moment."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def folder_name(run_id: str, series: str, ranks: Sequence[int]) -> str:
    """Return the name of the share folder of a series: readable, and different for every series of every run."""
    text = "\0".join((run_id, series, *map(str, ranks)))
    run = re.sub(r"[^A-Za-z0-9._]", "_", run_id)[:64]
    return f"{PREFIX}{run}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class ShareFolder:
    """One rank's membership of a share folder, from :meth:`join` to :meth:`leave`."""

    def __init__(self, path: Path, ranks: Sequence[int], own: int, timeout_s: float) -> None:
        """Describe the folder; nothing is touched before :meth:`join`.

        Args:
            path: of the folder.
            ranks: the run's rank numbers, for errors, in group order.
            own: this rank's index in them.
            timeout_s: how long to wait for another rank; ``SWTRACE_TIMEOUT``.
        """
        self.path = path
        self.ranks = tuple(ranks)
        self._own = own
        self._timeout_s = timeout_s
        self._folder = -1
        self._lock = -1
        self._said = 0
        self._at_exit: Finalize | None = None

    # ---- joining and leaving -------------------------------------------------------------------

    def join(self, *, returns: bool = True) -> None:
        """Enter the folder, which is made if this rank is the first, and emptied if no rank in it lives.

        Args:
            returns: whether a rank that ended may join ranks that it started with.

        Raises:
            TransportError: the folder or a file in it cannot be trusted, this rank lives already, or it must not
                return.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for dead in dead_folders(self.path.parent):
                remove(dead)
            self._folder = _enter(self.path, self._timeout_s)
            try:
                self._take_place(returns=returns)
            finally:
                fcntl.flock(self._folder, fcntl.LOCK_UN)
        except OSError as error:
            self._close_descriptors()
            raise TransportError(
                f"the share folder {self.path} cannot be used: {error}; SWTRACE_DIR sets its parent"
            ) from error
        except TransportError:
            self._close_descriptors()
            raise

    def _take_place(self, *, returns: bool) -> None:
        if foreign := _foreign(self._folder):
            raise TransportError(f"{self.path} holds {foreign[0]!r}, which is not swtrace's: remove it")
        if not _anyone_lives(self._folder) and _empty(self._folder):
            logger.info("swtrace: removed what dead ranks left in %s", self.path)
        # Before the lock is taken, because those that look at it must not believe that the former rank still lives.
        if not returns and self.has(_said_name(0, self._own)) and not self.lives(self._own):
            raise TransportError(
                f"rank {self.ranks[self._own]} of this run has ended, and its layers with it; it cannot join those "
                f"that are left ({listed('rank', self._living())}): restart them too"
            )
        lock = self._open(_lock_name(self._own), os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + _ENTRY_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
                    os.close(lock)
                    raise TransportError(
                        f"rank {self.ranks[self._own]} of this run lives already (pid {holder}): give each replica "
                        f"its own number, or each deployment its own SWTRACE_RUN_ID"
                    ) from None
                time.sleep(_LONGEST_POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock
        self._at_exit = Finalize(None, self.leave, exitpriority=0)
        _joined.add(self)
        with suppress(FileNotFoundError):  # what this rank was writing when it was killed
            os.unlink(self._unfinished, dir_fd=self._folder)

    def leave(self) -> None:
        """Leave the folder. The last living rank removes it."""
        if self._folder < 0:
            return
        try:
            _lock_folder(self._folder, self.path, _LEAVE_S)
            os.close(self._lock)
            self._lock = -1
            self.remove(_lock_name(self._own))
            if not _anyone_lives(self._folder):
                _empty(self._folder)
                self.path.rmdir()
        except (OSError, TransportError) as error:
            logger.warning("swtrace: the share folder %s could not be removed: %s", self.path, error)
        finally:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        if self._at_exit is not None:
            self._at_exit.cancel()
            self._at_exit = None
        for descriptor in (self._lock, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._folder = -1

    def _living(self) -> list[int]:
        return [rank for index, rank in enumerate(self.ranks) if self.lives(index)]

    def died(self, rank: int) -> bool:
        """Return whether a rank, by its index in the group, was a member and ended without leaving."""
        return self.has(_lock_name(rank)) and not self.lives(rank)

    def lives(self, rank: int) -> bool:
        """Return whether a rank, by its index in the group, is a living member."""
        return (rank == self._own and self._lock >= 0) or _locked(self._folder, _lock_name(rank))

    # ---- what ranks say at start-up ------------------------------------------------------------

    def exchange(self, item: object) -> list[object]:
        """Say this rank's next item, and return every rank's item of that number, by index in the group.

        Raises:
            TransportError: a rank did not say its item in time; the message names it.
        """
        number = self._said
        self._said += 1
        self.write(_said_name(number, self._own), item)
        names = [_said_name(number, rank) for rank in range(len(self.ranks))]
        self.await_files(names, range(len(self.ranks)))
        return [self.read(name) for name in names]

    def await_files(self, names: Sequence[str], owners: Sequence[int]) -> None:
        """Wait until files have been written, each by the rank with that index in the group.

        Raises:
            TransportError: ranks have not written theirs in time; the message names them.
        """
        deadline = time.monotonic() + self._timeout_s
        pause_s = _FIRST_POLL_S
        while True:
            missing = [rank for name, rank in zip(names, owners, strict=True) if not self.has(name)]
            if not missing:
                return
            if time.monotonic() > deadline:
                raise TransportError(self._describe_missing(missing))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)

    def _describe_missing(self, missing: Sequence[int]) -> str:
        silent = [self.ranks[rank] for rank in missing if self.lives(rank)]
        absent = [self.ranks[rank] for rank in missing if not self.lives(rank)]
        said = []
        if absent:
            said.append(f"{listed('rank', absent)} did not start, or died")
        if silent:
            said.append(f"{listed('rank', silent)} did not get as far as this rank")
        return (
            f"{', and '.join(said)} within {self._timeout_s:g} s (SWTRACE_TIMEOUT); all replicas need the same "
            f"SWTRACE_DIR and SWTRACE_RUN_ID"
        )

    # ---- bytes ---------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Return whether a file is there, and so complete."""
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def same(self, name: str, other: str) -> bool:
        """Return whether two names are of one file."""
        if not self.has(name):
            return False
        return os.path.samestat(*(os.stat(each, dir_fd=self._folder, follow_symlinks=False) for each in (name, other)))

    def publish(self, name: str, nbytes: int, fill: Callable[[mmap.mmap], object]) -> mmap.mmap:
        """Write a file that others map, and return a writable mapping of it.

        Raises:
            TransportError: there is no room.
        """
        return self._write(name, nbytes, fill)

    def map(self, name: str, nbytes: int, *, writable: bool) -> mmap.mmap:
        """Return a mapping of a complete file, with all of its pages present.

        Raises:
            TransportError: it has another size.
        """
        descriptor = self._open(name, os.O_RDWR if writable else os.O_RDONLY)
        try:
            found = os.fstat(descriptor).st_size
            if found != nbytes:
                raise TransportError(f"{self.path / name} has {found} bytes instead of {nbytes}: another checkpoint")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            return mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, access)
        finally:
            os.close(descriptor)

    def link(self, name: str, other: str) -> None:
        """Give a complete file a second name."""
        with suppress(FileExistsError):
            os.link(name, other, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove a name, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    @property
    def _unfinished(self) -> str:
        return f".new-{self._own}"

    def _write(self, name: str, nbytes: int, fill: Callable[[mmap.mmap], object]) -> mmap.mmap:
        self.remove(self._unfinished)
        descriptor = self._open(self._unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            # Reserve the whole file or fail here: a later store into a page that tmpfs cannot provide is a SIGBUS.
            os.posix_fallocate(descriptor, 0, nbytes)
            mapping = mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            fill(mapping)
        except OSError as error:
            self.remove(self._unfinished)
            if error.errno not in _NO_ROOM:
                raise
            free = os.fstatvfs(self._folder)
            raise TransportError(
                f"no room for {nbytes} bytes in {self.path}, where {free.f_bavail * free.f_frsize} are free; make that "
                f"file system larger (docker run --ipc=host or --shm-size), or set SWTRACE_DIR to a larger one in "
                f"memory"
            ) from error
        finally:
            os.close(descriptor)
        os.rename(self._unfinished, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return mapping

    def write(self, name: str, item: object) -> None:
        """Write a file that others read."""
        content = pickle.dumps(item)
        self._write(name, len(content), lambda mapping: mapping.write(content))

    def read(self, name: str) -> object:
        """Return the item in a complete file.

        Raises:
            TransportError: another version of swtrace wrote it.
        """
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            content = file.read()
        try:
            return pickle.loads(content)  # noqa: S301 (written by this user's ranks)
        except Exception as error:
            raise TransportError(
                f"{self.path / name} cannot be read ({type(error).__name__}: {error}): run the same version of swtrace "
                f"on all ranks"
            ) from error

    def _open(self, name: str, flags: int) -> int:
        """Open a file of the folder; refuse anything but a regular file of this user that nobody else may touch."""
        try:
            descriptor = os.open(name, flags | _CAREFULLY, _MODE, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a symbolic link, a socket, a folder
                raise TransportError(f"{self.path / name} is not a regular file: remove it") from None
            raise
        try:
            _check(os.fstat(descriptor), str(self.path / name), stat.S_ISREG, "a regular file")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


@dataclass(frozen=True, slots=True)
class DeadFolder:
    """A share folder of this user in which no rank lives."""

    path: Path
    nbytes: int
    """Of all files in it."""


def dead_folders(directory: Path) -> list[DeadFolder]:
    """Return this user's share folders in which no rank lives, sorted by name; none that holds an unknown file."""
    dead = []
    with suppress(OSError):
        for path in sorted(directory.glob(f"{PREFIX}*")):
            with suppress(OSError, TransportError), _entered(path) as folder:
                if not _foreign(folder) and not _anyone_lives(folder):
                    dead.append(DeadFolder(path, _nbytes(folder)))
    return dead


def remove(dead: DeadFolder) -> bool:
    """Remove a dead folder; return whether that was possible: not if a rank has joined since."""
    try:
        with _entered(dead.path) as folder:
            if _anyone_lives(folder):
                return False
            _empty(folder)
            dead.path.rmdir()
    except FileNotFoundError:
        return True
    except (OSError, TransportError):
        return False
    return True


@contextmanager
def _entered(path: Path) -> Iterator[int]:
    descriptor = _enter(path, 0.0, make=False)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(path: Path, timeout_s: float, *, make: bool = True) -> int:
    """Return a descriptor of a share folder, with its lock held."""
    while True:
        if make:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, os.O_DIRECTORY | _CAREFULLY)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise TransportError(f"{path} is not a folder: remove it") from None
            if error.errno == errno.ENOENT and make:
                continue  # the last rank has just left
            raise
        try:
            _check(os.fstat(descriptor), str(path), stat.S_ISDIR, "a folder")
            _lock_folder(descriptor, path, timeout_s)
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed meanwhile


def _lock_folder(descriptor: int, path: Path, timeout_s: float) -> None:
    """Lock a folder, which others do only while they join or leave.

    Raises:
        TransportError: another process does not release it in time, for example because it was stopped.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TransportError(
                    f"another process has locked {path} for {timeout_s:g} s; has it stopped?"
                ) from None
            time.sleep(_FIRST_POLL_S)
        else:
            return


def _check(status: os.stat_result, what: str, is_kind: Callable[[int], bool], kind: str) -> None:
    if not is_kind(status.st_mode):
        raise TransportError(f"{what} is not {kind}: remove it")
    if status.st_uid != os.geteuid():
        raise TransportError(
            f"{what} belongs to user {status.st_uid}, not to user {os.geteuid()}: run all replicas as one user, or set "
            f"SWTRACE_DIR to a folder of your own"
        )
    if status.st_mode & _OTHERS:
        raise TransportError(
            f"{what} is accessible to other users (mode {stat.S_IMODE(status.st_mode):04o}): remove it"
        )


def _lock_name(rank: int) -> str:
    return f"rank-{rank}.lock"


def _said_name(number: int, rank: int) -> str:
    return f"said-{number}-{rank}"


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


def _foreign(folder: int) -> list[str]:
    return [name for name in _names(folder) if not _KNOWN.fullmatch(name)]


def _anyone_lives(folder: int) -> bool:
    return any(_locked(folder, name) for name in _names(folder) if _LOCK.fullmatch(name))


def _locked(folder: int, name: str) -> bool:
    """Return whether some process holds a rank's lock. A probe does not disturb other probes."""
    try:
        descriptor = os.open(name, os.O_RDONLY | _CAREFULLY, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _nbytes(folder: int) -> int:
    """Return the bytes of a folder's files, counting a file with two names once."""
    found = {}
    for name in _names(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        found[status.st_ino] = status.st_size
    return sum(found.values())


def _empty(folder: int) -> bool:
    """Remove swtrace's files; return whether there were any."""
    names = [name for name in _names(folder) if _KNOWN.fullmatch(name)]
    for name in names:
        os.unlink(name, dir_fd=folder)
    return bool(names)


def _forget_in_child() -> None:
    """Let go of the parent's folders in a forked child: its locks must end with the parent."""
    for folder in list(_joined):
        folder._close_descriptors()  # noqa: SLF001 (same module)


_joined: weakref.WeakSet[ShareFolder] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)
