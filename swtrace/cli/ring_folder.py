"""The ring folder, for every command: its option, how it is resolved, and its errors."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

import typer

from swtrace.cli.arguments import not_empty
from swtrace.errors import SettingsError

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="FOLDER",
        help="Folder of the rings. Default: `SWTRACE_DIR`, else a per-user folder on tmpfs.",
        parser=not_empty("--dir", Path),
    ),
]


def folder_to_read(given: Path | None = None) -> Path:
    """Return the folder to read rings from. It may not exist yet, because the first rank creates it.

    Raises:
        SettingsError: the path cannot be a folder.
    """
    from swtrace.settings import ring_directory

    directory = ring_directory(given)
    try:
        is_folder = stat.S_ISDIR(directory.stat().st_mode)
    except FileNotFoundError:
        return directory
    except OSError as error:
        raise _unusable(directory, error) from error
    if not is_folder and given is not None:
        raise SettingsError.of("--dir", str(given), "a folder")
    if not is_folder:
        raise SettingsError(f"{directory} is not a folder; {_REMEDY}")
    return directory


def make_folder(directory: Path) -> Path:
    """Create the folder for the ranks' rings, readable only by this user, and return it.

    Raises:
        SettingsError: it cannot be created.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise SettingsError(f"{directory} is not a folder; {_REMEDY}") from None
    except OSError as error:
        raise _unusable(directory, error) from error
    return directory


_REMEDY = "set SWTRACE_DIR to a folder that you own on a tmpfs, the same for ranks and readers"


def _unusable(directory: Path, error: OSError) -> SettingsError:
    return SettingsError(f"{directory} cannot be used as the ring folder: {error.strerror}; {_REMEDY}")
