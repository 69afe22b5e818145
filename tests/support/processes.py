"""Processes as /proc shows them: who runs, and who descends from whom."""

from __future__ import annotations

from pathlib import Path

from tests.support.patience import eventually


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"


def command_line(pid: int) -> str:
    """Return its arguments, joined by spaces; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Return every process below ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def descendant(pid: int, marker: str) -> int:
    """Wait for a descendant whose command line contains ``marker``, and return its pid."""
    found: list[int] = []

    def appeared() -> bool:
        found[:] = [child for child in descendants(pid) if marker in command_line(child)]
        return bool(found)

    eventually(appeared, f"a process with {marker!r} below {pid}")
    return found[0]
