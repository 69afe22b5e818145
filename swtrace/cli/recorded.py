"""What commands about recordings share: opening the files, and saying what is missing in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli import units
from swtrace.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from swtrace.recording import Recording
    from swtrace.recording.replay import Replayed
    from swtrace.watch import RankStatus

Files = Annotated[
    list[Path],
    typer.Argument(help="A recording; or all parts of a rotated one.", metavar="FILE...", show_default=False),
]
Salvage = Annotated[bool, typer.Option("--salvage", help="Read around damage, and count it.")]


def opened(paths: Sequence[Path], *, salvage: bool) -> Recording:
    """Open a recording.

    Raises:
        RecordingFormatError: it cannot be read; the message says why.
    """
    from swtrace.recording import Recording

    return Recording.open(paths, salvage=salvage)


def say_missing(recording: Recording, console: Console) -> None:
    """Say what the recording lacks, if anything."""
    missing = recording.missing()
    if missing.tail_bytes:
        records = f" ({missing.tail_records} records)" if missing.tail_records else ""
        console.print(f"The recording ends within a frame: its last {missing.tail_bytes} bytes{records} are missing.")
    elif not missing.finished:
        console.print("The recording was not closed: what had not been written when it was killed is missing.")
    if missing.damaged_frames:
        console.print(
            f"[bold red]Damaged:[/] {missing.damaged_frames} frames ({missing.damaged_bytes} bytes, "
            f"{missing.damaged_records} records) were skipped. Figures of that time are not complete."
        )


def statuses(replayed: Replayed, path: Path) -> tuple[RankStatus, ...]:
    """Return the ranks as their rings last showed them; the records' own count where no state was recorded."""
    from swtrace.watch import RankStatus, died_ranks

    identities = {identity.key: identity for identity in replayed.identities}
    found = tuple(
        RankStatus(
            identity=identities[state.rank],
            path=path,
            alive=state.alive,
            closed=state.closed,
            statistics=state.statistics,
            series=replayed.tables.get(state.rank, ()),
            windows=dict(state.windows),
        )
        for state in replayed.status
        if state.rank in identities
    )
    died = died_ranks(found)
    return tuple(replace(status, died=status.identity.key in died) for status in found)


def size(text: str) -> int:
    """Return a size in bytes: ``500M``, ``2GiB``, ``1000``.

    Raises:
        CommandError: it is none.
    """
    number = text.strip().rstrip("iB")
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(number[-1:].upper(), 1)
    try:
        value = float(number[:-1] if factor > 1 else number) * factor
    except ValueError:
        value = 0.0
    if not 1 <= value < 1 << 60:
        raise CommandError(f"{text!r} is no size: write 500M or 2G", ExitCode.USAGE)
    return int(value)


def described(recording: Recording, ranks: int) -> str:
    """Return a recording in a few words."""
    return f"{recording.records} records of {ranks} ranks, {units.size(recording.size)}"
