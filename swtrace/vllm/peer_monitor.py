"""Monitoring of peers: if one dies, this rank's log names it, wherever this rank is blocked.

A broadcast from a dead peer fails with an error that names it. But a rank may be blocked elsewhere: vLLM's tensor
parallel reduction on CPU waits forever once a peer is gone, until vLLM kills the rank, which then reports
nothing. So a thread checks whether the peers still hold the locks of their rings: when the process of one ends, and
once a second, because processes in other containers are out of sight. This takes two system calls per peer, on
descriptors opened once, and shares no lock with the forward.

Peers on other hosts have no ring here. Their loss shows only when a broadcast fails. Ranks that pull do not depend on
each other: the series itself says who is gone, and goes on.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swtrace.errors import RingFormatError
from swtrace.series.operations import arrived, numbered
from swtrace.series.transport import RECEIVER
from swtrace.trace import schema
from swtrace.trace.directory import opened, ring_paths
from swtrace.trace.header import decode_header, writer_lives
from swtrace.trace.liveness import open_process

if TYPE_CHECKING:
    from swtrace.series import Series
    from swtrace.trace.recorder import Recorder

logger = logging.getLogger("vllm.swtrace")

PERIOD_S = 1.0
SEARCHES = 10
"""How often to search for peers' rings. All are made before the model is loaded; missing ones are on other hosts."""


def start_peer_monitor(recorder: Recorder) -> PeerMonitor:
    """Monitor the peers of this process's series until these are closed. Call once all series are finished."""
    monitor = PeerMonitor(numbered(), recorder)
    threading.Thread(target=monitor.watch, name="swtrace-peer-monitor", daemon=True).start()
    return monitor


class PeerMonitor:
    """Checks, in one thread, the locks of the rings of this process's peers."""

    def __init__(self, numbered_series: tuple[Series, ...], recorder: Recorder) -> None:
        self._series = {
            one.number: one for one in numbered_series if one.post_processed and one.info.rendezvous != RECEIVER
        }
        self._directory = recorder.path.parent
        self._run_id = recorder.identity.run_id
        self._rank = recorder.identity.rank
        self._missing = {rank for one in self._series.values() for rank in one.info.group_ranks} - {self._rank}
        names = {name for one in self._series.values() for name in one.peers.processes.values()}
        self._processes = [descriptor for name in names if (descriptor := open_process(name)) is not None]
        """Descriptors that show when a peer's process ends. Only its ring shows whether it stopped cleanly."""
        self._searches = SEARCHES
        self._rings: dict[int, int] = {}
        """Descriptors by rank."""

    def watched(self) -> dict[int, str]:
        """Return the watched peers, each with its open ring file. A removed file ends in `` (deleted)``."""
        files = {}
        for rank, descriptor in tuple(self._rings.items()):
            with suppress(OSError):  # closed in the meantime
                files[rank] = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return files

    def watch(self) -> None:
        """Check the peers until all of them are gone, or all series are closed."""
        try:
            while not all(one.closed for one in self._series.values()) and (self._rings or self._searches):
                if self._missing and self._searches:
                    self._searches -= 1
                    self._search()
                for rank, descriptor in tuple(self._rings.items()):
                    if not writer_lives(descriptor):
                        if any(os.pread(descriptor, 8, schema.CLOSED_OFFSET)):
                            # The rank stopped cleanly, or its ring file was removed and it made a new one.
                            self._missing.add(rank)
                            self._searches += 1
                        else:
                            self._log_death(rank)
                        os.close(self._rings.pop(rank))
                self._await_end()
        finally:
            for descriptor in (*self._rings.values(), *self._processes):
                os.close(descriptor)

    def _await_end(self) -> None:
        """Wait until a peer's process ends, or it is time to check the rings again."""
        poll = select.poll()
        for descriptor in self._processes:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(PERIOD_S * 1000):
            self._processes.remove(descriptor)
            os.close(descriptor)

    def _search(self) -> None:
        """Open the rings of missing peers that exist by now."""
        for path in ring_paths(self._directory):
            with suppress(OSError, RingFormatError), opened(path) as descriptor:
                header = os.pread(descriptor, schema.SERIES_TABLE_OFFSET, 0)
                identity = decode_header(header, os.fstat(descriptor).st_size).identity
                # A rank that was restarted under the same run id also has a dead ring.
                if identity.run_id == self._run_id and identity.rank in self._missing and writer_lives(descriptor):
                    self._rings[identity.rank] = os.dup(descriptor)
                    self._missing.discard(identity.rank)

    def _log_death(self, rank: int) -> None:
        for number, series in self._series.items():
            if rank in series.info.group_ranks:
                logger.error(
                    "swtrace: series %r, rank %d, layer %d: rank %d died; its broadcasts will not arrive, and "
                    "collectives of vLLM that include it cannot complete",
                    series.name,
                    self._rank,
                    max(arrived(number), series.info.layers[0]),
                    rank,
                )
