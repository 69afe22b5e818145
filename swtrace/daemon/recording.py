"""A recording as a stream: ``/api/v1/recording`` sends every record of this host to whoever keeps them.

Each client has readers of its own, so that none slows the daemon, its other clients or a rank. The stream begins
with what the rings still hold, and has no end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from swtrace.recording.capture import Capture
from swtrace.recording.writer import StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEDIA_TYPE = "application/vnd.swtrace.recording"
_POLL_S = 0.1


def stream(directory: Path, run_id: str | None, serving: Callable[[], bool]) -> Iterator[bytes]:
    """Yield a recording of a folder of rings, as long as the daemon serves and somebody listens.

    When the daemon ends, what is committed by then is sent first.
    """
    writer = StreamWriter()
    capture = Capture(directory, writer, run_id=run_id)
    try:
        while serving():
            more = capture.poll()
            data = writer.take()
            if data:
                yield data
            elif not more:
                time.sleep(_POLL_S)
        capture.watch.drain()
        writer.status(capture.states())
        yield writer.take()
    finally:
        capture.watch.close()
