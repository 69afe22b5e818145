"""Where commands read living ranks: the rings of this host, or daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtrace.cli.ring_folder import folder_to_read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swtrace.credentials import Credentials
    from swtrace.observing import Origin


def live(
    directory: Path | None, connect: str | None, *, shown: Credentials, newest_steps: int | None = None
) -> tuple[str, Callable[[], Origin]]:
    """Return the name of a source, and a function that opens it. Bad arguments raise here, not in a reader's thread.

    Args:
        directory: The folder of the rings, as given.
        connect: Addresses of daemons; None for the rings of this host.
        shown: What to show to the daemons.
        newest_steps: Skip all but about this many of the last steps; None reads everything that the rings hold.

    Raises:
        SettingsError: the folder or an address is not valid.
    """
    from swtrace.observing import HostRings

    if connect is None:
        folder = folder_to_read(directory)
        return f"the rings in {folder}", lambda: HostRings(folder, newest_steps=newest_steps)
    from swtrace.http_client import addresses
    from swtrace.observing.merged import Merged
    from swtrace.recording.remote import DaemonStream

    daemons = addresses(connect)
    return connect, lambda: Merged(
        [DaemonStream(each, newest_steps=newest_steps, credentials=shown) for each in daemons]
    )
