"""The stream of events: ``/api/v1/recording`` sends every record to clients that record or view them.

Each client has its own origin, so a slow client slows neither the daemon, other clients nor a rank. The stream
begins with the oldest records that the rings hold, or near their end, and lasts until the daemon or the client stops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.daemon.api import QueryError, check_names, whole_number
from swtrace.daemon.heaps import return_free_memory
from swtrace.recording.tee import STATUS_S, Tee
from swtrace.recording.writer import FLUSH_S, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from swtrace.observing import Origin

MEDIA_TYPE = "application/vnd.swtrace.recording"
_MOST_STEPS = 1 << 20
"""Upper bound of the numbers in a request."""
_POLL_S = 0.1
_WATCHED_STATUS_S = 0.25
"""Interval at which the state of rings and windows is sent to viewers."""


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """The parameters of a request for the stream."""

    run_id: str | None = None
    """Only this run; None for all."""
    newest_steps: int | None = None
    """For viewers: begin about this many steps before each ring's end, and skip steps rather than fall behind.
    None sends everything."""
    every: int = 1
    """Only one step in so many, in runs of :data:`~swtrace.trace.schema.RUN_STEPS`."""
    watching: bool = False
    """The client is a daemon that watches this one."""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> StreamQuery:
        """Read the query string of a request.

        Raises:
            QueryError: a parameter is unknown or has an invalid value.
        """
        check_names(parameters, "run", "newest", "every", "watching")
        if parameters.get("run") == "":
            raise QueryError("run='': must not be empty")
        return cls(
            run_id=parameters.get("run"),
            newest_steps=whole_number(parameters, "newest", 0, _MOST_STEPS) or None,
            every=whole_number(parameters, "every", 1, _MOST_STEPS, lowest=1),
            watching=bool(whole_number(parameters, "watching", 0, 1)),
        )


def stream(origin: Origin, wanted: StreamQuery, serving: Callable[[], bool]) -> Generator[bytes]:
    """Yield a recording of an origin until the daemon stops or the client disconnects. Close the origin at the end.

    When the daemon stops, the records that are committed by then are still sent.
    """
    watched = wanted.newest_steps is not None and not wanted.watching
    writer = StreamWriter(flush_s=_POLL_S if watched else FLUSH_S)
    tee = Tee(origin, writer, status_s=_WATCHED_STATUS_S if watched else STATUS_S)
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
        return_free_memory()
