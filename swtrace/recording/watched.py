"""Several daemons as the origin of another daemon, which watches their hosts together."""

from __future__ import annotations

import socket
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from swtrace import http_client
from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.http_client import LOOKED_UP
from swtrace.observing.merged import Merged
from swtrace.observing.origin import Link, OriginStatus, Polled
from swtrace.recording.remote import DaemonStream

_LOOK_UP_S = 10.0
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class WatchedDaemons(Merged):
    """The daemons that a daemon watches. The ranks of one that is lost are forgotten until it is back.

    Args:
        addresses: Of the daemons. One that begins with :data:`~swtrace.http_client.LOOKED_UP` stands for those at all
            addresses of its name.
        credentials: What to show to the daemons, and to trust.
        run_id: Only this run; None for all.
        newest_steps: See :class:`~swtrace.recording.remote.DaemonStream`.
        every: Only one step in so many, in runs of :data:`~swtrace.trace.schema.RUN_STEPS`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: Credentials = ANONYMOUS,
        run_id: str | None = None,
        newest_steps: int | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(())
        self._credentials = credentials
        self._run_id, self._newest_steps, self._every = run_id, newest_steps, every
        self._names = [_Name(each) for each in addresses if each.startswith(LOOKED_UP)]
        self._fixed = [each for each in addresses if not each.startswith(LOOKED_UP)]
        self._daemons: dict[str, DaemonStream] = {}

    def poll(self, limit: int | None = None) -> Polled:
        """Return the new events of the daemons that there are now."""
        self._follow_names()
        return super().poll(limit)

    @property
    def problems(self) -> Mapping[str, str]:
        """What the daemons report, and under its address why a daemon does not answer."""
        lost = {each.address: each.lost for each in self._daemons.values() if each.lost is not None}
        lost |= {name.text: name.problem for name in self._names if name.problem}
        return {**super().problems, **{address: f"{address}: {why}" for address, why in lost.items()}}

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the state of each daemon, and of names that are not or cannot be looked up."""
        names = (name.status() for name in self._names)
        return (*super().status(), *(status for status in names if status is not None))

    def close(self) -> None:
        """Close all connections, and look up no more names."""
        for name in self._names:
            name.close()
        super().close()

    def _follow_names(self) -> None:
        """Watch the daemons that the names stand for now, and no others."""
        wanted = dict.fromkeys(self._fixed, self._credentials)
        for name in self._names:
            # The daemons' certificates have the name, not the addresses.
            credentials = replace(self._credentials, server_name=name.host)
            wanted = {**dict.fromkeys(name.addresses(), credentials), **wanted}
        for address in self._daemons.keys() - wanted.keys():
            self.remove(self._daemons.pop(address))
        for address, credentials in wanted.items():
            if address not in self._daemons:
                self._daemons[address] = DaemonStream(
                    address,
                    run_id=self._run_id,
                    newest_steps=self._newest_steps,
                    every=self._every,
                    watching=True,
                    credentials=credentials,
                )
                self.add(self._daemons[address])


class _Name:
    """A name whose addresses are looked up again and again, in a thread of its own."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problem = ""
        """Why there is no answer; empty if there is one."""
        self._found: tuple[str, ...] = ()
        self._looked_up = self._used = False
        self._closing = threading.Event()
        parts = urllib.parse.urlsplit(http_client.url(text.removeprefix(LOOKED_UP)))
        self._scheme, self.host, self._port = parts.scheme, parts.hostname or "", parts.port
        self._thread = threading.Thread(target=self._run, name=f"swtrace-{text}", daemon=True)

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of the daemons, as of the last look-up that had an answer."""
        if self._thread.ident is None:
            self._thread.start()
        self._used = self._looked_up
        return self._found

    def status(self) -> OriginStatus | None:
        """Return the state of the look-up; None if the name has addresses."""
        if not self._used:
            return OriginStatus(self.text, Link.CONNECTING)
        return OriginStatus(self.text, Link.LOST, self.problem) if self.problem else None

    def close(self) -> None:
        """Look up no more."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:  # UnicodeError: the name is malformed
                if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
                    self._found = ()
                self.problem = getattr(error, "strerror", None) or str(error)
            else:
                self._found = tuple(sorted({self._address(str(address[0])) for *_, address in found}))
                self.problem = ""
            self._looked_up = True
            self._closing.wait(_LOOK_UP_S)

    def _address(self, host: str) -> str:
        return http_client.address(f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{self._port}")
