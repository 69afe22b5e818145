"""A stack of linears on one rank, observed and not shared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from swtrace.ledger import Ledger
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.series import RankGroup, Series
from swtrace.settings import Settings
from swtrace.share import Share
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader

LAYERS, WIDTH = 5, 16
OBSERVE = Settings(share=Share("none"))
ALONE = RankGroup((0,), 0)


@dataclass
class Observed:
    """A stack of linears on one rank, observed, and its ring."""

    series: Series
    layers: nn.ModuleList
    recorder: Recorder

    def forward(self, x: Tensor) -> Tensor:
        """Run the stack."""
        for index, layer in enumerate(self.layers):
            self.series.reach(index)
            x = layer(x)
        return x

    def steps(self, count: int) -> None:
        """Run steps."""
        for _ in range(count):
            with self.series.step():
                self.forward(torch.ones(1, WIDTH))

    def facts(self) -> tuple[SeriesFacts, tuple[StepFacts, ...]]:
        """Return what a ledger makes of what was recorded so far."""
        ledger = Ledger(keep_untaken=1 << 10)
        ledger.add_rank(self.recorder.identity)
        ledger.set_series(self.recorder.identity.key, (self.series.info,))
        with RingReader.open(self.recorder.path) as reader:
            ledger.add(self.recorder.identity.key, reader.read())
        return ledger.facts().series[0], ledger.take_steps()


@contextmanager
def observed_stack(folder: Path) -> Iterator[Observed]:
    """Yield a stack whose series is post-processed."""
    recorder = Recorder.create(folder, RankIdentity("run", 0, "host", "boot", os.getpid(), time.time_ns()))
    series = Series(
        "s", ALONE, 0, LAYERS, layers=(), prefetch_step=3, recorder=recorder, settings=OBSERVE, time_every=2
    )
    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
    for index, layer in enumerate(layers):
        series.register(index, layer)
    series.post_process()
    yield Observed(series, layers, recorder)
    series.close()
    recorder.close()
