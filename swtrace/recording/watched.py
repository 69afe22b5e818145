"""Several daemons as the origin of another daemon, which watches their hosts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.observing.merged import Merged
from swtrace.recording.remote import DaemonStream


@dataclass(frozen=True, slots=True)
class Watched:
    """Which daemons are watched, and how."""

    addresses: tuple[str, ...]
    """Each ``host:port`` or URL."""
    every: int
    """Only steps whose number is a multiple of this."""
    credentials: Credentials = ANONYMOUS
    """What to show to the daemons, and to trust."""


class WatchedDaemons(Merged):
    """The daemons that a daemon watches. The ranks of one that is lost are forgotten until it is back.

    Args:
        watched: The daemons.
        run_id: Only this run; None for all.
        newest_steps: See :class:`~swtrace.recording.remote.DaemonStream`.
        every: Only steps whose number is a multiple of this.
    """

    def __init__(
        self, watched: Watched, *, run_id: str | None = None, newest_steps: int | None = None, every: int = 1
    ) -> None:
        self._daemons = {
            address: DaemonStream(
                address,
                run_id=run_id,
                newest_steps=newest_steps,
                every=every,
                keep=False,
                credentials=watched.credentials,
            )
            for address in watched.addresses
        }
        super().__init__(tuple(self._daemons.values()))

    @property
    def problems(self) -> Mapping[str, str]:
        """What the daemons report, and under its address why a daemon does not answer."""
        lost = {
            daemon.address: f"{daemon.address}: {daemon.lost}"
            for daemon in self._daemons.values()
            if daemon.lost is not None
        }
        return {**super().problems, **lost}
