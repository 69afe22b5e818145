"""Find the ranks of a run that died, so that a failed broadcast can name them.

Standard library only, because ranks load this module.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from swtrace.errors import RingFormatError
from swtrace.trace import schema
from swtrace.trace.directory import opened, ring_paths
from swtrace.trace.header import decode_header, writer_lives
from swtrace.trace.identity import RankIdentity


def dead_ranks(directory: Path, run_id: str) -> tuple[RankIdentity, ...]:
    """Return the ranks of a run that lost their lock without closing their ring, sorted by rank.

    This covers only ranks of this host, whose rings are in ``directory``. A rank with another, living ring
    was restarted and is not dead.
    """
    dead: dict[int, RankIdentity] = {}
    living: set[int] = set()
    for path in ring_paths(directory):
        with suppress(OSError, RingFormatError), opened(path) as descriptor:
            header = os.pread(descriptor, schema.SERIES_TABLE_OFFSET, 0)
            identity = decode_header(header, os.fstat(descriptor).st_size).identity
            if identity.run_id != run_id:
                continue
            if writer_lives(descriptor):
                living.add(identity.rank)
            elif not any(header[schema.CLOSED_OFFSET : schema.CLOSED_OFFSET + 8]):
                dead[identity.rank] = identity
    return tuple(dead[rank] for rank in sorted(dead.keys() - living))
