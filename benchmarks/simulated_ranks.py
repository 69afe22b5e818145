"""Rings of simulated ranks, to benchmark readers: prepared records are copied in at a given rate.

``python -m benchmarks.simulated_ranks FOLDER --ranks 64 --layers 128 --rate 50 --seconds 60``

Header, lock and windows are those of the real recorder. The records of a few steps of a simulated schedule are made
in advance, and every step is one copy per rank. So 64 ranks cost a few per cent of one core, instead of the several
cores of 64 real processes. A copy is committed as by a rank: sequence number 0, the other words, then the number.
All records of a step appear at its end, not one by one.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from swtrace.trace import schema
from swtrace.trace.clocks import boot_id
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import STORES_IN_ORDER, Recorder, SeriesRecorder
from swtrace.trace.records import STEP, TRANSFER, WORDS
from tests.support.simulated_rings import scenario

_STEPS = 9
"""Steps made in advance. Only the first has prefilled windows; the others are written repeatedly."""
_BUSY = 0.85
"""Duration of a step as a share of the interval between steps."""

_Words = npt.NDArray[np.uint64]


class SimulatedRanks:
    """Writes steps of all ranks.

    Args:
        directory: Where the rings go.
        ranks: Number of ranks.
        layers: Number of layers of the series.
        rate: Calls of :meth:`write_step` per second. Instants are scaled to it.
        ring_records: Capacity of each ring.
        name: Name of the schedule.
    """

    def __init__(
        self, directory: Path, *, ranks: int, layers: int, rate: float, ring_records: int, name: str = "stalled"
    ) -> None:
        if not STORES_IN_ORDER:
            raise SystemExit("these rings have no check words, so they need a machine that does not reorder stores")
        schedule = scenario(name, ranks=ranks, layers=layers, steps=_STEPS)
        self._layers = layers
        records = np.stack(schedule.records).reshape(ranks, _STEPS, layers + 1)
        ends = records[:, :, -1].view(STEP)["end_ns"]
        scale = _BUSY * 1e9 / rate * (_STEPS - 1) / float(ends[0, -1] - ends[0, 0])
        _scale(records, int(records["issued_ns"][records["issued_ns"] > 0].min()), scale)
        self._end_ns = records[:, :, -1].view(STEP)["end_ns"].max(axis=0)
        self._words: _Words = records.view(WORDS).reshape(ranks, _STEPS, layers + 1, schema.RECORD_WORDS)
        self._recorders: list[Recorder] = []
        self._series: list[SeriesRecorder] = []
        self._rings: list[_Words] = []
        for rank, info in enumerate(schedule.infos):
            identity = RankIdentity("simulated", rank, "host", boot_id(), os.getpid(), time.time_ns(), "simulated")
            recorder = Recorder.create(directory, identity, records=ring_records)
            self._recorders.append(recorder)
            windows = max(2, info.prefetch_step + 1)
            self._series.append(recorder.add_series(replace(info, window_count=windows)))
            self._rings.append(_ring(recorder.path))
        self.step = 0

    def write_step(self) -> None:
        """Write the next step of every rank, as if it had just ended."""
        inner = self.step if self.step < _STEPS else 1 + (self.step - 1) % (_STEPS - 1)
        later = self.step - inner
        words = self._words[:, inner].copy()
        shift = np.uint64(time.monotonic_ns() - int(self._end_ns[inner]))
        words[:, :, :3] += shift
        words[:, :-1, 3] += shift
        words[:, :, 4] += np.uint64(later)
        words[:, :-1, 4] += np.uint64(later * self._layers) << np.uint64(32)
        first = 1 + self.step * (self._layers + 1)
        sequence = np.arange(first, first + self._layers + 1, dtype=WORDS)
        slots = (sequence % np.uint64(len(self._rings[0]))).astype(np.int64)
        for rank, ring in enumerate(self._rings):
            ring[slots, schema.SEQUENCE_WORD] = 0
            ring[slots, : schema.SEQUENCE_WORD] = words[rank, :, : schema.SEQUENCE_WORD]
            ring[slots, schema.SEQUENCE_WORD] = sequence
            self._show_windows(self._series[rank], words[rank].view(TRANSFER).reshape(-1))
        self.step += 1

    def _show_windows(self, series: SeriesRecorder, records: npt.NDArray[np.void]) -> None:
        """Mark the windows as holding the last layers of the step."""
        windows = series.info.window_count
        for window in range(windows):
            record = records[self._layers - windows + window]
            token = series.window_issued(window, self.step, int(record["position"]), int(record["issued_ns"]))
            series.window_ready(window, token, int(record["ready_ns"]))
            series.window_in_use(window, token, int(record["wait_end_ns"]))

    def close(self) -> None:
        """Close every ring."""
        for recorder in self._recorders:
            recorder.close()


def _scale(records: npt.NDArray[np.void], origin: int, scale: float) -> None:
    """Move all instants towards the first one."""
    kinds = records["kind"]
    for kind, view, names in (
        (schema.Kind.TRANSFER, records, ("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns")),
        (schema.Kind.STEP, records.view(STEP), ("begin_ns", "arrival_ns", "end_ns")),
    ):
        for name in names:
            column = view[name]
            column[kinds == kind] = origin + ((column[kinds == kind] - origin) * scale).astype(np.int64)


def _ring(path: Path) -> _Words:
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    return np.frombuffer(mapping, WORDS, offset=schema.HEADER_BYTES).reshape(-1, schema.RECORD_WORDS)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ring-records", type=int, default=schema.DEFAULT_RECORDS)
    arguments = parser.parse_args()
    ranks = SimulatedRanks(
        arguments.directory,
        ranks=arguments.ranks,
        layers=arguments.layers,
        rate=arguments.rate,
        ring_records=arguments.ring_records,
    )
    begin, cpu = time.monotonic(), time.process_time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while (elapsed := time.monotonic() - begin) < arguments.seconds:
            while ranks.step <= elapsed * arguments.rate:
                ranks.write_step()
            time.sleep(max(0.0, begin + ranks.step / arguments.rate - time.monotonic()))
    finally:
        ranks.close()
        wall = time.monotonic() - begin
        print(
            f"  simulated ranks: {ranks.step} steps in {wall:.1f} s ({ranks.step / wall:.1f} a second),"
            f" {100 * (time.process_time() - cpu) / wall:.1f} % of a core"
        )


if __name__ == "__main__":
    main()
