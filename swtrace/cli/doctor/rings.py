"""The rings that can be seen: whose they are, whether they live, and which files are none."""

from __future__ import annotations

from pathlib import Path

from swtrace.cli.doctor.finding import Finding, State
from swtrace.errors import TraceError

_SHOWN = 16


def rings(directory: Path) -> tuple[Finding, ...]:
    """Open every ring of the folder once."""
    from swtrace.trace.directory import ring_paths

    try:
        paths = ring_paths(directory)
    except OSError as error:
        return (Finding("rings", State.BROKEN, f"{directory}: {error.strerror}", "read the folder as its owner"),)
    if not paths:
        return (Finding("rings", State.ABSENT, "none: no rank has traced here yet", "swtrace demo, or SWTRACE=1"),)
    findings = tuple(_ring(path) for path in paths[:_SHOWN])
    if len(paths) > _SHOWN:
        findings += (Finding("rings", State.GOOD, f"{len(paths) - _SHOWN} more are not shown"),)
    return findings


def _ring(path: Path) -> Finding:
    from swtrace.trace.reader import RingReader

    try:
        reader = RingReader.open(path)
    except (TraceError, OSError) as error:
        return Finding(path.name, State.DOUBTFUL, str(error), f"remove it if no rank writes it: {path}")
    try:
        identity, written = reader.identity, reader.statistics().written
        life = "alive" if reader.alive() else "closed" if reader.closed() else "dead"
        names = ", ".join(info.name for info in reader.series()) or "no series yet"
        return Finding(
            path.name,
            State.GOOD,
            f"run {identity.run_id} rank {identity.rank}, {life}, {written} records; {names} "
            f"(pid {identity.pid} on {identity.host})",
        )
    finally:
        reader.close()
