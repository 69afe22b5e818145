"""Find the ranks of a run that died, so that a failed broadcast can name them.

A ring shows whether its rank lives, and whether it ended in order. Before a rank has a ring, and if it has none, its
process shows whether it lives.

Standard library only, because ranks load this module.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from swtrace.errors import RingFormatError
from swtrace.trace import schema
from swtrace.trace.clocks import boot_id
from swtrace.trace.directory import opened, ring_paths
from swtrace.trace.header import decode_header, writer_lives

_ENDED = ("Z", "X")
"""States in /proc of a process that has ended, whether or not its parent has noticed."""
_HIDDEN = ""
"""Instead of the state of a process that exists, but that /proc hides."""


def ended_ranks(directory: Path, run_id: str) -> dict[int, bool]:
    """Return the ranks of a run that ended, and whether each closed its ring. One that did not died.

    This covers only ranks of this host, whose rings are in ``directory``. A rank with another, living ring
    was restarted and has not ended.
    """
    ended: dict[int, bool] = {}
    living: set[int] = set()
    for path in ring_paths(directory):
        with suppress(OSError, RingFormatError), opened(path) as descriptor:
            header = os.pread(descriptor, schema.SERIES_TABLE_OFFSET, 0)
            identity = decode_header(header, os.fstat(descriptor).st_size).identity
            if identity.run_id != run_id:
                continue
            if writer_lives(descriptor):
                living.add(identity.rank)
            else:
                closed = any(header[schema.CLOSED_OFFSET : schema.CLOSED_OFFSET + 8])
                ended[identity.rank] = closed and ended.get(identity.rank, True)
    return {rank: closed for rank, closed in sorted(ended.items()) if rank not in living}


def own_process() -> str:
    """Return a name by which other processes recognize this one, and see whether it still runs."""
    _, began = _state(os.getpid())
    return f"{_kernel()} {os.getpid()} {began}"


def process_ended(name: str) -> bool:
    """Return whether a process has ended; False also if it is on another host, or hidden from this process."""
    kernel, pid, began = name.rsplit(" ", 2)
    if kernel != _kernel():
        return False
    state, began_then = _state(int(pid))
    return state in _ENDED or (began_then != began and state != _HIDDEN)


def open_process(name: str) -> int | None:
    """Return a descriptor that is readable once a process has ended; None if it is out of this process's sight."""
    kernel, pid, _ = name.rsplit(" ", 2)
    if kernel != _kernel():
        return None
    try:
        descriptor = os.pidfd_open(int(pid))
    except OSError:
        return None
    if process_ended(name):  # the number may be another process's by now
        os.close(descriptor)
        return None
    return descriptor


def _kernel() -> str:
    """Return what processes have in common that see each other in /proc, with the same numbers and instants."""
    try:
        namespaces = (Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in ("pid", "time"))
        return " ".join((boot_id(), *map(str, namespaces)))
    except OSError:
        return f"{boot_id()} {os.getpid()}"  # equal for no two processes


def _state(pid: int) -> tuple[str, str]:
    """Return the state of a process, and when it began, in ticks since the boot."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return "X", ""
        return _HIDDEN, ""
    return fields[0], fields[19]
