"""Two ranks of a series on an ideal channel: real runtime and weights, simulated time, reproducible figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from swtrace.series.ideal import IdealChannel, IdealTransport
from swtrace.series.series import Series

if TYPE_CHECKING:
    from swtrace.testing import Tracing

LAYERS = 12
MILLISECOND = 1_000_000


def forwards(tracing: Tracing, *, compute_ms: float, transfer_ms: float, steps: int = 30) -> None:
    """Run forwards of a model whose ``o_proj`` is shared by two ranks."""
    channel = IdealChannel(2, occupancy_ns=round(transfer_ms * MILLISECOND))

    def rank(transport: IdealTransport) -> None:
        series = Series(
            "o_proj", transport.group, 0, LAYERS, transport=transport, recorder=tracing.recorder(transport.rank)
        )
        for index in range(LAYERS):
            series.register(index, nn.Linear(4, 4, bias=False))
        series.post_process()
        for _ in range(steps):
            with series.step():
                for index in range(LAYERS):
                    series.reach(index)
                    transport.compute(round(compute_ms * MILLISECOND))
                    series.wait(index)
        series.close()

    channel.run(rank)
