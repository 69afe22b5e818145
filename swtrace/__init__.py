"""Shared-weight series for vLLM, traced: see every broadcast, every wait, every stall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtrace.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from swtrace.session import Session

__all__ = ["__version__", "open"]


def open(  # noqa: A001 - swtrace.open reads like the builtin
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    run_id: str | None = None,
    salvage: bool = False,
) -> Session:
    """Return the facts of a run, live from a folder of rings or from a recording (:mod:`swtrace.session`).

    Args:
        source: A recording; the parts of one; a folder of rings; None: where the ranks of this user put them.
        run_id: With a folder, only this run.
        salvage: With a recording, read around damage instead of raising.
    """
    from swtrace.session import open_session

    return open_session(source, run_id=run_id, salvage=salvage)
