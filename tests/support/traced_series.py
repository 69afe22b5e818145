"""A traced series for tests, on an ideal channel or over gloo, and what its rings hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swtrace.series import RankGroup, Series, recording
from swtrace.series.ideal import IdealTransport
from swtrace.trace import records as columns
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Kind, Phase
from tests.support.stacks import Stack, true_weights
from tests.support.writer_process import identity

LAYERS = 7
START = 3
COMPUTE = 100
STEPS = 4


class Traced:
    """A traced series of one rank on an ideal channel."""

    def __init__(self, transport: IdealTransport, folder: Path, **options: Any) -> None:
        self.transport = transport
        self.recorder = Recorder.create(folder, identity(transport.rank))
        self.series = Series(
            "s", transport.group, START, START + LAYERS, transport=transport, recorder=self.recorder, **options
        )
        self.stack = Stack(self.series, START, true_weights(LAYERS))
        self.series.post_process()

    def steps(self, count: int) -> None:
        """Run marked forwards; rank 1 computes twice as long."""
        for step in range(count):
            with self.series.step(phase=Phase.DECODE, tokens=5, requests=2):
                self.stack.forward(step, before=lambda: self.transport.compute(COMPUTE * (1 + self.transport.rank)))

    def finish(self) -> None:
        """Close the series and the ring."""
        self.series.close()
        self.recorder.close()


def read(folder: Path, rank: int) -> tuple[SeriesInfo, Any]:
    """Return the series and the records in a rank's ring."""
    (path,) = (path for path in folder.iterdir() if f"-{rank}-" in path.name)
    with RingReader.open(path) as reader:
        return reader.series()[0], reader.read()


def transfers(records: Any) -> Any:
    """Return the TRANSFER records."""
    return records[records["kind"] == Kind.TRANSFER]


def stepped(records: Any) -> Any:
    """Return the STEP records."""
    return records[records["kind"] == Kind.STEP].view(columns.STEP)


def traced_on_gloo(_rank: int, steps: int = 50) -> None:
    """Run a traced series over gloo, recording where the environment says."""
    series = Series("g", RankGroup.world(), START, START + LAYERS, recorder=recording.process_recorder)
    stack = Stack(series, START, true_weights(LAYERS))
    series.post_process()
    for step in range(steps):
        with series.step():
            stack.forward(step)
    series.close()
