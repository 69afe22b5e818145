"""A peer that died is named in this rank's log, wherever this rank is held just then.

A broadcast that a dead peer owes fails by itself, with an error that names it. But a rank may be held
elsewhere: vLLM's tensor parallel reduction on CPU waits for ever when a peer is gone, until vLLM kills
the rank, which then says nothing. So a thread looks once a second whether the peers still hold the locks
of their rings: two system calls each, on descriptors opened once. It shares no lock with the forward.

Peers on other hosts have no ring here; of their loss only the broadcast tells.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swtrace.errors import RingFormatError
from swtrace.series.operations import arrived, numbered
from swtrace.trace import schema
from swtrace.trace.directory import opened, ring_paths
from swtrace.trace.header import decode_header, writer_lives

if TYPE_CHECKING:
    from swtrace.series import Series
    from swtrace.trace.recorder import Recorder

logger = logging.getLogger("vllm.swtrace")

PERIOD_S = 1.0
SEARCHES = 10
"""How often peers' rings are looked for. All are made before the model is loaded; the rest is on other hosts."""


def start_peer_monitor(recorder: Recorder) -> PeerMonitor:
    """Watch the peers of this process's series until these are forgotten. Must come when all are finished."""
    monitor = PeerMonitor(numbered(), recorder)
    threading.Thread(target=monitor.watch, name="swtrace-peer-monitor", daemon=True).start()
    return monitor


class PeerMonitor:
    """What one thread watches: the locks of the rings of this process's peers."""

    def __init__(self, numbered_series: tuple[Series, ...], recorder: Recorder) -> None:
        self._series = {one.number: one for one in numbered_series if one.post_processed}
        self._directory = recorder.path.parent
        self._run_id = recorder.identity.run_id
        self._rank = recorder.identity.rank
        self._missing = {rank for one in self._series.values() for rank in one.info.group_ranks} - {self._rank}
        self._searches = SEARCHES
        self._rings: dict[int, int] = {}
        """Descriptors by rank."""

    def watched(self) -> dict[int, str]:
        """Return the peers watched just now, each with the file that is held open: ``... (deleted)`` if removed."""
        files = {}
        for rank, descriptor in tuple(self._rings.items()):
            with suppress(OSError):  # let go of meanwhile
                files[rank] = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return files

    def watch(self) -> None:
        """Look until all peers are gone, or nobody asks any more."""
        try:
            while not all(one.closed for one in self._series.values()) and (self._rings or self._searches):
                if self._missing and self._searches:
                    self._searches -= 1
                    self._search()
                for rank, descriptor in tuple(self._rings.items()):
                    if not writer_lives(descriptor):
                        if any(os.pread(descriptor, 8, schema.CLOSED_OFFSET)):
                            # Gone in good order; or the file had been removed, and the rank made its ring again.
                            self._missing.add(rank)
                            self._searches += 1
                        else:
                            self._tell(rank)
                        os.close(self._rings.pop(rank))
                time.sleep(PERIOD_S)
        finally:
            for descriptor in self._rings.values():
                os.close(descriptor)

    def _search(self) -> None:
        """Open the peers' rings that are there by now."""
        for path in ring_paths(self._directory):
            with suppress(OSError, RingFormatError), opened(path) as descriptor:
                header = os.pread(descriptor, schema.SERIES_TABLE_OFFSET, 0)
                identity = decode_header(header, os.fstat(descriptor).st_size).identity
                # A rank that was started again under the same run id has a dead ring, too.
                if identity.run_id == self._run_id and identity.rank in self._missing and writer_lives(descriptor):
                    self._rings[identity.rank] = os.dup(descriptor)
                    self._missing.discard(identity.rank)

    def _tell(self, rank: int) -> None:
        for number, series in self._series.items():
            if rank in series.info.group_ranks:
                logger.error(
                    "swtrace: series %r, rank %d, layer %d: rank %d died; what this rank still needs of it, here or in "
                    "a collective of vLLM's, will not come",
                    series.name,
                    self._rank,
                    max(arrived(number), series.info.start_layer),
                    rank,
                )
