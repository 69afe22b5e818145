"""Records per CPU second that a ledger ingests: live, in big batches, and from a recording.

``python -m benchmarks.ledger``. With ``--before CHECKOUT``, runs alternate with those of another version's ledger.
Ratios compare neighbouring runs, because other work on the machine slows down both. Each run is its own process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.recordings import batch, identity, info
from swtrace.ledger import Ledger
from swtrace.observing import Roster
from swtrace.observing.events import RankJoined, RecordsRead, SeriesListed
from swtrace.recording import Recording
from swtrace.recording.replay import Replay
from swtrace.recording.writer import RecordingWriter
from swtrace.trace.identity import RankKey
from swtrace.trace.records import Records

ASKED_EVERY = 10
"""Live steps."""
CASES: dict[str, tuple[int, int, int, str]] = {
    "live, 8 x 61": (8, 61, 100, "one step at a time, asked every 10 steps"),
    "live, 64 x 128": (64, 128, 20, "one step at a time, asked every 10 steps"),
    "every step, 8 x 61": (8, 61, 100, "one step at a time, asked after each"),
    "daemon, 8 x 61": (8, 61, 720, "12 steps at once, asked after 240: at 50 steps/s, a scrape every 5 s"),
    "daemon, 64 x 128": (64, 128, 240, "12 steps at once, asked after 240: at 50 steps/s, a scrape every 5 s"),
    "big, 8 x 61": (8, 61, 400, "100 steps at once, asked after each batch"),
    "big, 64 x 128": (64, 128, 80, "20 steps at once, asked after each batch"),
    "replay, 8 x 61": (8, 61, 400, "a recording, read and ingested, steps returned"),
    "read, 8 x 61": (8, 61, 400, "the same recording, only read"),
}
"""Ranks, layers, steps, and what is done with them."""
PACE = {"live": (1, ASKED_EVERY), "every step": (1, 1), "daemon": (12, 240)}
"""Steps added at once, and the number of steps after which facts are requested."""

Feed = Callable[[Ledger, list[Records]], None]


def in_pieces(layers: int, steps: int, at_once: int, asked_every: int) -> Feed:
    """Return a function that adds this many steps at once, and requests steps and facts after so many."""

    def feed(ledger: Ledger, records: list[Records]) -> None:
        for first in range(0, steps, at_once):
            piece = slice(first * (layers + 1), (first + at_once) * (layers + 1))
            ledger.add_batches([(RankKey("bench", rank), each[piece]) for rank, each in enumerate(records)])
            if (first + at_once) % asked_every == 0:
                ledger.take_steps()
                ledger.facts()

    return feed


def measure(case: str, folder: Path) -> float:
    """Return the records per CPU second of the second run; the first one warms up."""
    ranks, layers, steps, _ = CASES[case]
    records = [np.load(folder / f"{ranks}-{layers}-{rank}.npy")[: steps * (layers + 1)] for rank in range(ranks)]
    kind = case.split(",", maxsplit=1)[0]
    spent = 0.0
    for _ in range(2):
        begun = time.process_time()
        if kind in {"replay", "read"}:
            with Recording.open(folder / "recording.swrec") as recording:
                steps_or_events = Roster(Replay(recording), keep_steps=True).steps() if kind == "replay" else None
                for _ in steps_or_events or recording.events():
                    pass
        else:
            ledger = Ledger(keep_untaken=1 << 16)
            for rank in range(ranks):
                ledger.add_rank(identity(rank))
                ledger.set_series(RankKey("bench", rank), (info(rank, ranks, layers),))
            in_pieces(layers, steps, *PACE.get(kind, (steps // 4, steps // 4)))(ledger, records)
        spent = time.process_time() - begun
    return ranks * (layers + 1) * steps / spent


def prepare(folder: Path) -> None:
    """Write the records of all cases, and the recording, in frames that interleave the ranks."""
    for ranks, layers in {(ranks, layers) for ranks, layers, _, _ in CASES.values()}:
        steps = max(most for *shape, most, _ in CASES.values() if shape == [ranks, layers])
        chance = np.random.default_rng(1)
        records = [batch(rank, 0, steps, chance, ranks, layers) for rank in range(ranks)]
        for rank, each in enumerate(records):
            np.save(folder / f"{ranks}-{layers}-{rank}.npy", each)
        if (ranks, layers) == (8, 61):
            with RecordingWriter(folder / "recording.swrec") as writer:
                for rank in range(ranks):
                    writer.take(RankJoined(identity(rank)))
                    writer.take(SeriesListed(RankKey("bench", rank), (info(rank, ranks, layers),)))
                for first in range(0, steps * (layers + 1), layers + 1):
                    of_step = [
                        (RankKey("bench", rank), each[first:][: layers + 1]) for rank, each in enumerate(records)
                    ]
                    writer.take(RecordsRead(tuple(of_step)))


def measured_elsewhere(case: str, folder: Path, checkout: Path) -> float:
    """Return the measurement of a process that imports swtrace from a checkout."""
    command = [sys.executable, __file__, "--measure", case, "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def stated(values: list[float], unit: float = 1e6) -> str:
    """Return the median and range as text."""
    return f"{statistics.median(values) / unit:6.2f} ({min(values) / unit:.2f} .. {max(values) / unit:.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="checkout of another version, to be measured in turn with this one")
    parser.add_argument("--repetitions", type=int, default=7, help="runs of each case (7)")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.folder))
        return
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        print("million records per CPU second: median (lowest .. highest)")
        for case, (*_, what) in CASES.items():
            before, after = [], []
            for _ in range(arguments.repetitions):
                if arguments.before:
                    before.append(measured_elsewhere(case, folder, arguments.before.resolve()))
                after.append(measured_elsewhere(case, folder, here))
            line = f"  {case:19} now {stated(after)}"
            if before:
                ratios = [new / old for old, new in zip(before, after, strict=True)]
                line += f"  before {stated(before)}  ratio {stated(ratios, 1)}"
            print(f"{line}  {what}", flush=True)


if __name__ == "__main__":
    main()
