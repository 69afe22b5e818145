"""``swtrace clean``: remove the rings of dead ranks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import number
from swtrace.cli.console import data, write_json
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.ring_folder import FolderOption, folder_to_read

if TYPE_CHECKING:
    from collections.abc import Collection

    from swtrace.trace.directory import DeadRing


def clean(
    *,
    directory: FolderOption = None,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            help="Only rings whose last record is older than this. Default: all.",
            metavar="SECONDS",
            show_default=False,
            parser=number("--older-than", 0, of="seconds"),
        ),
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the rings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rings as JSON.")] = False,
) -> None:
    """Remove the rings of dead ranks, and with them the last records that `swtrace top` and the daemon show.

    Never removes the ring of a live rank. Ranks that start also remove old rings (`SWTRACE_RING_KEEP`), so this
    command is only needed to free their memory at once. Exits with 1 if a ring cannot be removed.
    """
    from swtrace.trace.directory import dead_rings, listed, remove

    folder = folder_to_read(directory)
    try:
        listed(folder)
    except OSError as error:
        raise CommandError(f"{folder} cannot be listed: {error.strerror}; run as its owner") from error
    before_s = time.time() - older_than
    dead = [ring for ring in dead_rings(folder) if ring.last_s <= before_s]
    kept = [] if dry_run else [ring for ring in dead if not remove(ring)]
    gone = [ring for ring in dead if ring not in kept]
    if as_json:
        write_json(
            {
                "folder": str(folder),
                "dry_run": dry_run,
                "removed": [{"path": str(ring.path), "bytes": ring.nbytes, "last": ring.last_s} for ring in gone],
                "not_removed": [str(ring.path) for ring in kept],
            }
        )
    else:
        console = data()
        for ring in gone:
            console.print(ring.path.name, soft_wrap=True, markup=False)
        console.print(f"{'Would remove' if dry_run else 'Removed'} {_described(gone)} from {folder}", soft_wrap=True)
    if kept:
        raise CommandError(
            f"cannot remove {_described(kept)} from {folder}: run as their owner, or as the owner of the folder"
        )


def _described(rings: Collection[DeadRing]) -> str:
    return f"{units.counted(len(rings), 'dead ring')} ({units.size(sum(ring.nbytes for ring in rings))})"
