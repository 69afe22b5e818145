"""Cost of recordings: records per second written and replayed, bytes per record, memory for an hour of eight ranks.

Prints one table. The hour is simulated: the instants of a schedule are shifted step by step, and nothing waits.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from swtrace.ledger import Ledger
from swtrace.observing import Roster
from swtrace.observing.events import RankJoined, RecordsRead, SeriesListed
from swtrace.recording import Recording
from swtrace.recording.playback import Controls, Playback
from swtrace.recording.replay import Replay
from swtrace.recording.writer import RecordingWriter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import STEP, TRANSFER, Records
from swtrace.trace.schema import NO_WINDOW, Kind, Observed, Phase, TransferFlag

RANKS, LAYERS, STEPS_PER_SECOND = 8, 61, 50


def batch(
    rank: int, first: int, steps: int, chance: np.random.Generator, ranks: int = RANKS, layers: int = LAYERS
) -> Records:
    """Return a rank's records of some steps. A fifth of the waits stall, and all instants jitter."""
    records = np.zeros((steps, layers + 1), TRANSFER)
    period = max(10**9 // STEPS_PER_SECOND, layers * 320_000)
    begin = 10**12 + (first + np.arange(steps))[:, np.newaxis] * period
    layer = np.arange(layers)
    wait = begin + layer * 300_000 + chance.integers(0, 40_000, (steps, layers))
    own = layer % ranks == rank
    late = (chance.random((steps, layers)) < 0.2) & ~own
    ready = wait + np.where(late, 1, -1) * chance.integers(20_000, 120_000, (steps, layers))
    body = records[:, :layers]
    body["kind"] = Kind.TRANSFER
    body["issued_ns"] = wait - 310_000
    body["ready_ns"] = ready
    body["wait_begin_ns"] = wait
    body["wait_end_ns"] = np.where(own, wait, np.maximum(wait, ready) + 30_000)
    body["step"] = (first + np.arange(steps))[:, np.newaxis]
    body["operation"] = body["step"] * layers + layer
    body["position"] = layer
    body["reach_position"] = (layer - 1) % layers
    body["source"] = layer % ranks
    body["window"] = np.where(own, NO_WINDOW, layer % 2)
    body["flags"] = np.where(own, TransferFlag.OWN, 0)
    body["observed_clock"] = Observed.CALLBACK
    ends = records[:, layers:].view(STEP)
    ends["kind"] = Kind.STEP
    ends["begin_ns"] = begin
    ends["arrival_ns"] = begin + 5_000
    ends["end_ns"] = begin + layers * 310_000
    ends["step"] = (first + np.arange(steps))[:, np.newaxis]
    ends["waits"] = layers
    ends["phase"] = Phase.DECODE
    flat: Records = records.reshape(-1)
    flat["sequence"] = first * (layers + 1) + np.arange(len(flat)) + 1
    return flat


def identity(rank: int) -> RankIdentity:
    """Return the identity of a rank."""
    return RankIdentity(run_id="bench", rank=rank, host="host", boot_id="boot", pid=rank + 1, start_time_ns=1)


def info(rank: int, ranks: int = RANKS, layers: int = LAYERS) -> SeriesInfo:
    """Return the series as described by a rank."""
    return SeriesInfo(
        name="o_proj",
        start_layer=0,
        stack_layers=layers,
        layers=tuple(range(layers)),
        prefetch_step=1,
        windows="static",
        window_count=2,
        group_ranks=tuple(range(ranks)),
        rank_in_group=rank,
        transport="gloo",
        rendezvous="source",
        clock="host",
        layer_bytes=1 << 20,
        owned_layers=len(range(rank, layers, ranks)),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="simulated length (60)")
    parser.add_argument("--replay-steps", type=int, default=2000, help="steps replayed into a ledger (2000)")
    arguments = parser.parse_args()
    steps = round(arguments.minutes * 60 * STEPS_PER_SECOND)
    chance = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.swrec")
        # A poll of 50 ms returns 2 or 3 steps per rank. 4 such templates are shifted in time repeatedly.
        templates = [[batch(rank, at * 5, 5, chance) for rank in range(RANKS)] for at in range(4)]
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = 0.0
        with RecordingWriter(path) as writer:
            for rank in range(RANKS):
                writer.take(RankJoined(identity(rank)))
                writer.take(SeriesListed(RankKey("bench", rank), (info(rank),)))
            for first in range(0, steps, 5):
                shifted = [_shift(template, first - first % 20) for template in templates[first // 5 % 4]]
                before = time.perf_counter()
                writer.take(
                    RecordsRead(tuple((RankKey("bench", rank), records) for rank, records in enumerate(shifted)))
                )
                spent += time.perf_counter() - before
            statistics = writer.statistics()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
        size = path.stat().st_size
        opened_at = time.perf_counter()
        with Recording.open(path) as recording:
            opened_s = time.perf_counter() - opened_at
            before = time.perf_counter()
            read = 0
            for _ in recording.events():
                read += 1
            read_s = time.perf_counter() - before
            roster = Roster(Replay(recording))
            before = time.perf_counter()
            while roster.poll() and _steps(roster.ledger) < arguments.replay_steps:
                pass
            replay_s = time.perf_counter() - before
            replayed = _steps(roster.ledger) * RANKS * (LAYERS + 1)
            Playback(recording, Controls())
    count = statistics.records
    print(f"{arguments.minutes:g} min of {RANKS} ranks x {LAYERS} layers x {STEPS_PER_SECOND} steps/s, simulated")
    print(f"  written          {count} records, {count / spent / 1e6:.2f} M records/s of one core")
    print(f"  of real time     {100 * spent / (arguments.minutes * 60):.2f} % of one core")
    print(f"  size             {size / 2**20:.1f} MiB, {size / count:.1f} bytes per record")
    print(f"  memory grown by  {grown / 1024:.1f} MiB")
    print(f"  opened in        {opened_s * 1e3:.0f} ms")
    print(f"  read             {count / read_s / 1e6:.2f} M records/s ({read} events)")
    print(f"  into a ledger    {replayed / replay_s / 1e6:.2f} M records/s")


def _steps(ledger: Ledger) -> int:
    series = ledger.facts().series
    return series[0].ranks[-1].totals.steps if series else 0


def _shift(records: Records, steps: int) -> Records:
    moved = records.copy()
    by = steps * (10**9 // STEPS_PER_SECOND)
    ends = moved["kind"] == Kind.STEP
    for name in ("issued_ns", "ready_ns", "wait_begin_ns"):
        moved[name] += by
    moved["wait_end_ns"][~ends] += by
    moved["sequence"] += steps * (LAYERS + 1)
    moved["step"] += steps
    moved["operation"][~ends] += steps * LAYERS
    return moved


if __name__ == "__main__":
    main()
