"""Write rings with the real recorder: a simulated schedule, once or forever, as ranks would write it.

Run as a program it keeps rings alive for a viewer::

    python tests/support/simulated_rings.py FOLDER --ranks 8 --layers 61 --rate 50 --seconds 60
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if __name__ == "__main__":
    # Last: an installed swtrace goes before this checkout's.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from swtrace.trace.clocks import boot_id
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.records import STEP, Records, clock, observed
from swtrace.trace.schema import NO_WINDOW, Kind, Phase, TransferFlag
from tests.support.schedules import Schedule, simulate

US = 1_000


class RingWriter:
    """The rings of a schedule's ranks, written step by step.

    Args:
        directory: Folder of the rings.
        schedule: The schedule to write.
        run_id: Name of the run.
        phases: Phases of the steps, cycled.
    """

    def __init__(
        self,
        directory: Path,
        schedule: Schedule,
        *,
        run_id: str = "run",
        phases: tuple[Phase, ...] = (Phase.DECODE,),
        ring_records: int = 1 << 14,
    ) -> None:
        self._schedule, self._phases = schedule, phases
        self._layers = schedule.infos[0].num_layers
        self._period = len(schedule.records[0]) // (self._layers + 1)
        self._at: list[list[Any]] = [_rows(records) for records in schedule.records]
        self.recorders: list[Recorder] = []
        self.series: list[SeriesRecorder] = []
        for rank, info in enumerate(schedule.infos):
            identity = RankIdentity(
                run_id=run_id,
                rank=rank,
                host="host",
                boot_id=boot_id(),
                pid=1000 + rank,
                start_time_ns=time.time_ns(),
                model="tiny-llama",
                version="test",
            )
            recorder = Recorder.create(directory, identity, records=ring_records)
            self.recorders.append(recorder)
            windows = max(2, info.prefetch_step + 1)
            self.series.append(recorder.add_series(replace(info, window_count=windows)))
        self._shift = 0

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return self._period

    def end_ns(self, step: int) -> int:
        """Return the schedule's instant at which a step has ended on every rank."""
        last = (step + 1) * (self._layers + 1) - 1
        return max([int(rows[last][2]) for rows in self._at])

    def write_step(self, step: int, shift_ns: int = 0) -> None:
        """Write one step of every rank, its instants moved by ``shift_ns``. The schedule repeats at its end."""
        lap, inner = divmod(step, self._period)
        if lap:
            lap, inner = divmod(step - self._period, self._period - 1)
            lap, inner = lap + 1, inner + 1
            shift_ns += lap * (self.end_ns(self._period - 1) - self.end_ns(0))
        for rank in range(len(self.series)):
            self._write_rank_step(rank, inner, step, shift_ns)

    def _write_rank_step(self, rank: int, inner: int, step: int, shift: int) -> None:
        series, begin = self.series[rank], inner * (self._layers + 1)
        for row in self._at[rank][begin : begin + self._layers]:
            issued, ready, wait_begin, wait_end, position, reach, source, window, seen, tick, flags = row
            operation = max(0, step * self._layers + position - series.info.prefetch_step)
            window = window if window == NO_WINDOW else position % series.info.window_count
            if window != NO_WINDOW and not flags & TransferFlag.PREFILLED:
                token = series.window_issued(window, step, position, issued + shift)
                series.window_ready(window, token, ready + shift)
                series.window_in_use(window, token, wait_end + shift)
            series.transfer(
                issued + shift, ready + shift, wait_begin + shift, wait_end + shift,
                step, operation, position, reach, source, window, seen, flags, tick,
            )  # fmt: skip
        entered, arrival, end = self._at[rank][begin + self._layers]
        phase = self._phases[step % len(self._phases)]
        tokens = 256 if phase is Phase.PREFILL else 8
        series.step(
            begin_ns=entered + shift,
            arrival_ns=arrival + shift,
            end_ns=end + shift,
            step=step,
            tokens=tokens,
            requests=8,
            phase=phase,
            waits=self._layers,
        )

    def close(self) -> None:
        """Close every ring, as ranks that end do."""
        for recorder in self.recorders:
            recorder.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every ring."""
        self.close()


def _rows(records: Records) -> list[Any]:
    """Return a rank's records as plain numbers; each step's own record comes last."""
    rows: list[Any] = []
    seen, tick, as_steps = observed(records), clock(records), records.view(STEP)
    for i, record in enumerate(records):
        if record["kind"] == Kind.STEP:
            rows.append(tuple(int(as_steps[i][name]) for name in ("begin_ns", "arrival_ns", "end_ns")))
        else:
            names = ("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns", "position", "reach_position", "source")
            first = [int(record[name]) for name in names]
            rows.append((*first, int(record["window"]), int(seen[i]), int(tick[i]), int(record["flags"])))
    return rows


def scenario(name: str, *, ranks: int = 4, layers: int = 24, steps: int = 24, k: int = 1, seed: int = 7) -> Schedule:
    """Return a schedule that looks like one of the demo's scenarios, with a little noise."""

    def noise(*at: int) -> float:
        return random.Random(f"{seed} {at}").uniform(0.9, 1.1)  # noqa: S311 - a reproducible schedule

    computes = {"hidden": 1_000 * US, "stalled": 350 * US, "straggler": 1_000 * US}
    base = computes[name]

    def compute(rank: int, step: int, position: int) -> int:
        late = 450 * US if name == "straggler" and rank == ranks - 1 else 0
        return round((base + late) * noise(rank, step, position))

    return simulate(
        ranks=ranks,
        layers=layers,
        k=k,
        steps=steps,
        compute=compute,
        gap=lambda rank, step: round(1_500 * US * noise(rank, step)),
        occupancy=900 * US if name == "stalled" else 420 * US,
        wake=12 * US,
    )


def write(directory: Path, name: str, **shape: Any) -> RingWriter:
    """Write all steps of a scenario, ending now, and return the open writer."""
    phases = shape.pop("phases", (Phase.DECODE,))
    run_id = shape.pop("run_id", "run")
    writer = RingWriter(directory, scenario(name, **shape), phases=phases, run_id=run_id)
    shift = time.monotonic_ns() - writer.end_ns(writer.steps - 1)
    for step in range(writer.steps):
        writer.write_step(step, shift)
    return writer


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scenario", default="stalled")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ring-records", type=int, default=1 << 16)
    arguments = parser.parse_args()
    schedule = scenario(arguments.scenario, ranks=arguments.ranks, layers=arguments.layers, steps=17)
    with RingWriter(arguments.directory, schedule, ring_records=arguments.ring_records) as writer:
        begin = time.monotonic()
        step = 0
        while (now := time.monotonic()) < begin + arguments.seconds:
            due = int((now - begin) * arguments.rate)
            while step <= due:
                # Within a step the schedule keeps its pace; steps follow at the requested rate.
                lap_free = time.monotonic_ns() - _end_of(writer, step)
                writer.write_step(step, lap_free)
                step += 1
            time.sleep(max(0.0, begin + step / arguments.rate - time.monotonic()))


def _end_of(writer: RingWriter, step: int) -> int:
    lap, inner = divmod(step, writer.steps)
    if lap:
        lap, inner = divmod(step - writer.steps, writer.steps - 1)
        return writer.end_ns(inner + 1) + (lap + 1) * (writer.end_ns(writer.steps - 1) - writer.end_ns(0))
    return writer.end_ns(inner)


if __name__ == "__main__":
    _main()
