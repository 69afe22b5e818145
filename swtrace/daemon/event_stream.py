"""Events as a stream: ``/api/v1/recording`` sends every record of this host to whoever keeps or watches them.

Each client has readers of its own, so that none slows the daemon, its other clients or a rank. The stream begins
with what the rings still hold, or near their end, and never ends by itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.daemon.api import QueryError, check_names, whole_number
from swtrace.observing.rings import HostRings
from swtrace.recording.tee import STATUS_S, Tee
from swtrace.recording.writer import FLUSH_S, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MEDIA_TYPE = "application/vnd.swtrace.recording"
_MOST_STEPS = 1 << 20
"""No request may name more steps."""
_POLL_S = 0.1
_WATCHED_STATUS_S = 0.25
"""How often a viewer is sent the state of rings and windows."""


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """What a client asks for."""

    run_id: str | None = None
    """Only this run; None for all."""
    newest_steps: int | None = None
    """Begin about so many steps before each ring's end, and leave steps out rather than fall behind: for viewers.
    None: everything."""
    every: int = 1
    """Only steps whose number is a multiple of this."""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> StreamQuery:
        """Read the query string of a request.

        Raises:
            QueryError: it asks for something that there is not.
        """
        check_names(parameters, "run", "newest", "every")
        if parameters.get("run") == "":
            raise QueryError("run='': must not be empty")
        return cls(
            run_id=parameters.get("run"),
            newest_steps=whole_number(parameters, "newest", 0, _MOST_STEPS) or None,
            every=whole_number(parameters, "every", 1, _MOST_STEPS, lowest=1),
        )


def stream(directory: Path, wanted: StreamQuery, serving: Callable[[], bool]) -> Iterator[bytes]:
    """Yield a recording of a folder of rings, as long as the daemon serves and somebody listens.

    When the daemon ends, what is committed by then is sent first.
    """
    watched = wanted.newest_steps is not None
    writer = StreamWriter(flush_s=_POLL_S if watched else FLUSH_S)
    rings = HostRings(directory, run_id=wanted.run_id, newest_steps=wanted.newest_steps, every=wanted.every)
    tee = Tee(rings, writer, status_s=_WATCHED_STATUS_S if watched else STATUS_S)
    try:
        while serving():
            more = tee.poll().more
            data = writer.frames()
            if data:
                yield data
            elif not more:
                time.sleep(_POLL_S)
        tee.finish()
        yield writer.frames()
    finally:
        tee.close()
