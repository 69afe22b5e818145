"""Check the ring folder: whether ranks can write there, whether it is in memory, and whether it has room.

Ranks that pull also keep their layers there.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from swtrace import units
from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.settings import Settings
from swtrace.trace.header import file_bytes

_UNTRACED = "ranks would run untraced, or not at all with SWTRACE_STRICT=1"
_COMFORTABLE_RINGS = 8
_LITTLE_ROOM = 1 << 30
"""Docker gives a container 64 MiB, less than the layers of any model that is worth sharing."""
_KERNEL_ONLY = ("proc", "sysfs", "cgroup2")
"""File systems in which no files can be created, whatever their permissions."""
_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_MOVE = "set SWTRACE_DIR to a folder that you own on a tmpfs, the same for ranks and readers"


def folder(directory: Path, settings: Settings) -> tuple[Diagnosis, ...]:
    """Check the folder, or where it would be created, for what ranks with these settings put there."""
    if not os.path.exists(directory):  # noqa: PTH110 (Path.exists raises where a parent cannot be searched)
        parent = next(parent for parent in directory.parents if os.path.exists(parent))  # noqa: PTH110
        if not parent.is_dir():
            return (
                Diagnosis("ring folder", State.BROKEN, f"{directory} cannot be created: {parent} is a file", _MOVE),
            )
        if _filesystem(parent) in _KERNEL_ONLY or not os.access(parent, os.W_OK | os.X_OK):
            return (
                Diagnosis(
                    "ring folder",
                    State.BROKEN,
                    f"{directory} cannot be created: {parent} is not writable; {_UNTRACED}",
                    _MOVE,
                ),
            )
        return (
            Diagnosis("ring folder", State.GOOD, f"{directory} will be created by the first rank"),
            *_place(parent, settings),
        )
    if not directory.is_dir():
        return (Diagnosis("ring folder", State.BROKEN, f"{directory} is not a folder; {_UNTRACED}", _MOVE),)
    return (_permissions(directory), *_place(directory, settings))


def _permissions(directory: Path) -> Diagnosis:
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not os.access(directory, os.R_OK | os.X_OK):
        return Diagnosis(
            "ring folder", State.BROKEN, f"{directory} ({mode:04o}) cannot be read", f"run as its owner, or {_MOVE}"
        )
    if not os.access(directory, os.W_OK):
        return Diagnosis(
            "ring folder",
            State.DOUBTFUL,
            f"{directory} ({mode:04o}) is readable but not writable, so no rank of this user can trace",
            _MOVE,
        )
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return Diagnosis(
            "ring folder",
            State.DOUBTFUL,
            f"{directory} ({mode:04o}): other users may remove rings",
            f"chmod go-w {directory}",
        )
    return Diagnosis("ring folder", State.GOOD, f"{directory} ({mode:04o})")


def _place(existing: Path, settings: Settings) -> tuple[Diagnosis, ...]:
    kind = _filesystem(existing)
    memory = (
        Diagnosis("ring file system", State.GOOD, kind)
        if kind in _MEMORY
        else Diagnosis(
            "ring file system", State.DOUBTFUL, f"{kind}: writing records to disk slows the ranks down", _MOVE
        )
    )
    free, ring = shutil.disk_usage(existing).free, file_bytes(settings.ring_records)
    detail = f"{units.size(free)} free; a ring takes {units.size(ring)}"
    if free < ring:
        detail += f"; unless rings of dead ranks can be removed, {_UNTRACED}"
        state, fix = State.BROKEN, "free memory there, or set a smaller SWTRACE_RING_RECORDS or another SWTRACE_DIR"
    elif free < _COMFORTABLE_RINGS * ring:
        state, fix = (
            State.DOUBTFUL,
            f"room for fewer than {_COMFORTABLE_RINGS} ranks; set a smaller SWTRACE_RING_RECORDS",
        )
    else:
        state, fix = State.GOOD, ""
    return memory, Diagnosis("ring space", state, detail, fix), _room_for_layers(free, settings)


def _room_for_layers(free: int, settings: Settings) -> Diagnosis:
    """Check the room for the layers of ranks that pull. Whether there are any may depend on vLLM's arguments."""
    pulls = settings.transport == "pull" or (settings.transport == "auto" and settings.replicas > 1)
    detail = f"transport {settings.transport}; {units.size(free)} free for the layers of replicas"
    if settings.transport == "broadcast":
        return Diagnosis("pull space", State.ABSENT, "transport broadcast; no replica pulls")
    if free >= _LITTLE_ROOM:
        return Diagnosis("pull space", State.GOOD, detail)
    fix = "make that file system larger (docker run --ipc=host or --shm-size), or set SWTRACE_DIR to another in memory"
    return Diagnosis("pull space", State.DOUBTFUL if pulls else State.ABSENT, detail, fix)


def _filesystem(path: Path) -> str:
    """Return the type of the file system that holds ``path``, from the kernel's mount table."""
    resolved = str(path.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind
