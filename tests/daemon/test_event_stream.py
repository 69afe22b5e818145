"""The stream of events: a recording of a folder of rings, to its last committed record."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.daemon.event_stream import StreamQuery, stream
from swtrace.observing import HostRings
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import replayed


@pytest.mark.parametrize(("wanted", "steps"), [(StreamQuery(), 10), (StreamQuery(run_id="another"), None)])
def test_what_is_committed_when_the_daemon_stops_is_still_sent(
    run: RecordedRun, tmp_path: Path, wanted: StreamQuery, steps: int | None
) -> None:
    """A stream that ends at once is a whole recording of the run asked for."""
    run.close()
    path = tmp_path / "run.swrec"
    path.write_bytes(b"".join(stream(HostRings(run.directory, run_id=wanted.run_id), wanted, lambda: False)))
    series = replayed(path).facts.series
    assert [rank.totals.steps for each in series for rank in each.ranks] == ([steps] * 2 if steps else [])
