"""``swtrace clean``: remove what dead ranks left: their rings, and the share folders of ranks that pulled."""

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
    from swtrace.trace.share_folder import DeadFolder


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was removed as JSON.")] = False,
) -> None:
    """Remove the rings of dead ranks, and with them the last records that `swtrace top` and the daemon show.

    Never removes the ring of a live rank. Ranks that start also remove old rings (`SWTRACE_RING_KEEP`), so this
    command is only needed to free their memory at once.

    Also removes your share folders in which no rank lives any more: the layers of ranks that pulled
    (`SWTRACE_TRANSPORT=pull`) and were all killed. Their age does not matter, because nothing reads them again.

    Exits with 1 if something cannot be removed.
    """
    from swtrace.trace import share_folder
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
    dead_folders = share_folder.dead_folders(folder)
    kept_folders = [] if dry_run else [each for each in dead_folders if not share_folder.remove(each)]
    gone_folders = [each for each in dead_folders if each not in kept_folders]
    if as_json:
        write_json(
            {
                "folder": str(folder),
                "dry_run": dry_run,
                "removed": [{"path": str(ring.path), "bytes": ring.nbytes, "last": ring.last_s} for ring in gone],
                "removed_share_folders": [{"path": str(each.path), "bytes": each.nbytes} for each in gone_folders],
                "not_removed": [*(str(ring.path) for ring in kept), *(str(each.path) for each in kept_folders)],
            }
        )
    else:
        console = data()
        for path in (*(ring.path for ring in gone), *(each.path for each in gone_folders)):
            console.print(path.name, soft_wrap=True, markup=False)
        removed = _described(gone, gone_folders)
        console.print(f"{'Would remove' if dry_run else 'Removed'} {removed} from {folder}", soft_wrap=True)
    if kept or kept_folders:
        raise CommandError(
            f"cannot remove {_described(kept, kept_folders)} from {folder}: run as their owner, or as the owner of the "
            f"folder"
        )


def _described(rings: Collection[DeadRing], folders: Collection[DeadFolder]) -> str:
    described = f"{units.counted(len(rings), 'dead ring')} ({units.size(sum(ring.nbytes for ring in rings))})"
    if folders:
        size = units.size(sum(folder.nbytes for folder in folders))
        described += f" and {units.counted(len(folders), 'dead share folder')} ({size})"
    return described
