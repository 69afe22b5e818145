"""The process that writes a rank's ring, if it can be seen from here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from swtrace.errors import SwtraceError
from swtrace.observing.observation import ObservedRank
from swtrace.trace.clocks import boot_id


class ProcessUnseenError(SwtraceError):
    """A rank's process cannot be found from here."""


def writer_pid(rank: ObservedRank) -> int:
    """Return the pid of a rank's process, as seen from here.

    The pid in a ring is that of the rank's own namespace, so it counts only if that process holds the ring file open.

    Raises:
        ProcessUnseenError: it is on another host or in another pid namespace, it may not be looked at, or it has ended.
    """
    identity, pid = rank.identity, rank.identity.pid
    if identity.boot_id != boot_id():
        raise ProcessUnseenError(f"rank {identity.rank} runs on another host ({identity.host}): run this there")
    folder = Path(f"/proc/{pid}/fd")
    try:
        ring = Path(rank.ring.path).stat()
        files = list(folder.iterdir())
    except PermissionError as error:
        raise ProcessUnseenError(
            f"rank {identity.rank}: process {pid} belongs to another user: run this as that user or as root"
        ) from error
    except OSError:
        files = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            if (status.st_dev, status.st_ino) == (ring.st_dev, ring.st_ino):
                return pid
    raise ProcessUnseenError(
        f"rank {identity.rank}: process {pid} has ended, or runs in another pid namespace (a container): run this there"
    )


def stopped(rank: ObservedRank) -> bool:
    """Return whether a rank's process is stopped by a signal or a debugger; False if that cannot be seen."""
    with suppress(ProcessUnseenError, OSError, IndexError):
        pid = writer_pid(rank)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] in "Tt"
    return False
