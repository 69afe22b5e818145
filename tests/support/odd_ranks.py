"""Ranks with every fault that an alert looks for, written by real recorders."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

from swtrace.trace.directory import ring_name
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.schema import Observed, Phase, Stage
from tests.support.patience import patience
from tests.support.recorded_run import identity, series_info

STALL_RATIO = 0.125
"""The stall of the rank that is neither hidden nor critical."""
_STEP_NS = 80_000_000
_RUN = "odd"


class OddRanks:
    """Writes until closed, in a separate thread."""

    def __init__(self, directory: Path) -> None:
        """Create the rings, and give each rank its fault."""
        self._recorders: list[Recorder] = []
        self._stop = threading.Event()
        self._stalling = self._series(directory, 0, "odd.stalling", prefetch_step=2)
        self._bypassed = self._series(directory, 1, "odd.bypassed")
        self._lapping = self._series(directory, 2, "odd.lapping", records=64)
        hanging = self._series(directory, 3, "odd.hanging")
        long_ago = time.monotonic_ns() - 300_000_000_000
        _write(hanging, 0, long_ago, 0)
        hanging.enter_stage(Stage.MARKED, long_ago)
        hanging.issued(6, long_ago)
        hanging.block(1, long_ago)
        refused = self._series(directory, 4, "odd.shared", untraced=(UntracedRank(1004, "no room for its ring"),))
        self._recorders[-1].add_series(
            series_info(0, name="odd.refused", refused="different shapes", window_count=0, owned_layers=0)
        )
        _write(refused, 0, time.monotonic_ns(), 0)
        self._recorders.append(Recorder.create(directory, identity(_RUN, 5), records=64))
        died = Recorder.create(directory, identity(_RUN, 6), records=64)
        _write(died.add_series(series_info(0, name="odd.died")), 0, time.monotonic_ns(), 0)
        died._detach()  # lets go of the ring without closing it, as a death does
        (directory / ring_name(_RUN, 7)).write_bytes(b"no ring")
        for rank, issued in ((8, 0), (9, 1 << 30)):
            diverged = self._series(directory, rank, "odd.diverged", group_ranks=(8, 9), rank_in_group=rank - 8)
            diverged.issued(issued, time.monotonic_ns())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all ranks."""
        self._stop.set()
        self._thread.join(patience())
        for recorder in self._recorders:
            recorder.close()

    def _series(
        self, directory: Path, rank: int, name: str, *, records: int = 4096, **changes: object
    ) -> SeriesRecorder:
        recorder = Recorder.create(directory, identity(_RUN, rank), records=records)
        self._recorders.append(recorder)
        # A group of this rank and one that no ring is there of: a peer on another host.
        info = replace(series_info(0, name=name, group_ranks=(rank, 1000 + rank)), **changes)  # type: ignore[arg-type]
        return recorder.add_series(info)

    def _run(self) -> None:
        for step in itertools.count():
            if self._stop.wait(_STEP_NS / 1e9):
                return
            begin = time.monotonic_ns() - _STEP_NS
            _write(self._stalling, step, begin, round(_STEP_NS * STALL_RATIO))
            _write(self._bypassed, step, begin, None)
            for lap in range(30):
                _write(self._lapping, 30 * step + lap, begin, 0)


def _write(series: SeriesRecorder, step: int, begin: int, stall_ns: int | None) -> None:
    """Write one step, with one wait that stalls for this long, or without a wait."""
    if stall_ns is not None:
        wait_begin = begin + 1_000_000
        instants = (begin + 10_000, wait_begin + stall_ns, wait_begin, wait_begin + stall_ns + 5_000)
        # Position 1 belongs to the peer; its broadcast was issued at position 0.
        series.transfer(*instants, step, step, 1, 0, 1, 0, Observed.CALLBACK, 0)
    series.step(
        begin_ns=begin,
        arrival_ns=begin,
        end_ns=begin + _STEP_NS,
        step=step,
        tokens=1,
        requests=1,
        phase=Phase.DECODE,
        waits=int(stall_ns is not None),
    )
