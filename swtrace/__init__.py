"""Share weights between vLLM's ranks or watch vLLM offload them, and see whether transfers hide behind compute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from swtrace.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.session import Session

__all__ = ["__version__", "open"]


def open(  # noqa: A001 - swtrace.open reads like the builtin
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    run_id: str | None = None,
    salvage: bool = False,
) -> Session:
    """Open a session on a folder of rings or on a recording (:mod:`swtrace.session`).

    Args:
        source: A recording, the parts of one, or a folder of rings. None: the ring folder of this user.
        run_id: With a folder, read only this run.
        salvage: With a recording, skip damaged parts instead of raising.

    Raises:
        RecordingFormatError: the file is not a recording, or is damaged.
    """
    from swtrace.errors import SettingsError
    from swtrace.session import RecordingSession, RingsSession
    from swtrace.settings import ring_directory, setting

    if source is None:
        return RingsSession(ring_directory(), run_id=run_id)
    if isinstance(source, (str, os.PathLike)):
        if str(source).startswith(("http://", "https://")):
            raise SettingsError(
                f"{source} is a URL; open a folder of rings or a recording, or query the daemon at /api/v1"
            )
        path = setting("directory", os.fspath(source), "swtrace.open")
        return RingsSession(path, run_id=run_id) if path.is_dir() else RecordingSession(path, salvage=salvage)
    return RecordingSession([Path(part) for part in source], salvage=salvage)
