"""Check the rings in the folder: who wrote them, whether the writer is alive, and which files are not rings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.errors import TraceError
from swtrace.units import counted

if TYPE_CHECKING:
    from swtrace.trace.identity import SeriesInfo

_SHOWN = 16


def rings(directory: Path) -> tuple[Diagnosis, ...]:
    """Check every ring of the folder."""
    from swtrace.trace.directory import listed

    try:
        paths = listed(directory)
    except OSError as error:
        return (Diagnosis("rings", State.BROKEN, f"{directory}: {error.strerror}", "run as the owner of the folder"),)
    if not paths:
        return (
            Diagnosis("rings", State.ABSENT, "none; no rank has traced here yet", "run swtrace demo, or set SWTRACE=1"),
        )
    # All peers report the same about an untraced rank.
    diagnoses = tuple(dict.fromkeys(diagnosis for path in paths[:_SHOWN] for diagnosis in _ring(path)))
    if len(paths) > _SHOWN:
        diagnoses += (Diagnosis("rings", State.GOOD, f"{len(paths) - _SHOWN} more are not shown"),)
    return diagnoses


def _ring(path: Path) -> tuple[Diagnosis, ...]:
    from swtrace.trace.ring_reader import RingReader

    try:
        reader = RingReader.open(path)
    except (TraceError, OSError) as error:
        return (Diagnosis(path.name, State.DOUBTFUL, str(error), _unreadable(path)),)
    try:
        identity, written = reader.identity, reader.statistics().written
        alive, series = reader.alive(), reader.series()
        life = "alive" if alive else "closed" if reader.closed() else "dead"
        names = ", ".join(info.name for info in series) or "no series yet"
        diagnosis = Diagnosis(
            path.name,
            State.GOOD,
            f"run {identity.run_id} rank {identity.rank}, {life}, {counted(written, 'record')}; {names} "
            f"(pid {identity.pid} on {identity.host})",
        )
    finally:
        reader.close()
    diagnoses = (diagnosis, *_not_shared(path, alive=alive))
    if not alive:
        return diagnoses
    return (*diagnoses, *(untraced for info in series for untraced in _untraced(identity.run_id, info)))


def _not_shared(path: Path, *, alive: bool) -> tuple[Diagnosis, ...]:
    """Return a diagnosis if this user may read the ring, but not the group that its folder is shared with."""
    from swtrace.trace.directory import is_hidden_from_group, make_readable

    try:
        ring, directory = path.lstat(), path.parent.stat()
    except FileNotFoundError:
        return ()
    if not is_hidden_from_group(ring, directory):
        return ()
    return (
        Diagnosis(
            path.name,
            State.DOUBTFUL,
            f"group {directory.st_gid} cannot read it, because it was made before its folder was shared",
            make_readable(directory.st_gid) if alive else f"remove it, because no process uses it: {path}",
        ),
    )


def _unreadable(path: Path) -> str:
    """Return what to do about a file that cannot be read. Only advise to remove it if no process is known to use it."""
    from swtrace.trace.directory import opened
    from swtrace.trace.header import writer_lives

    try:
        with opened(path) as descriptor:
            alive = writer_lives(descriptor)
    except PermissionError:
        return "leave it, because its rank may be alive; as root, swtrace doctor can tell"
    except OSError:
        return f"leave it until you know what uses it: {path}"
    if alive:
        return "a live process is writing it: leave it, and read it with the swtrace version that writes it"
    return f"remove it, because no process uses it: {path}"


def _untraced(run_id: str, info: SeriesInfo) -> tuple[Diagnosis, ...]:
    """Return a diagnosis for each peer without a ring that this ring names."""
    return tuple(
        Diagnosis(
            f"rank {untraced.rank}",
            State.DOUBTFUL,
            f"run {run_id}, series {info.name}: runs untraced: {untraced.reason}",
            "set SWTRACE_DIR to a folder with room that every rank can write to, or lower SWTRACE_RING_RECORDS; "
            "then restart the run",
        )
        for untraced in info.untraced
    )
