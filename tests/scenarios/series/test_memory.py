"""The bytes that a series reports, against the memory that the kernel reports for the process."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swtrace.series import RankGroup, Series
from tests.support.ranks import run_ranks

LAYERS = 16
"""Shared."""
RESIDENT = 3
ROWS, COLUMNS = 2048, 4096
LAYER_BYTES = ROWS * COLUMNS * 2
"""Of a bfloat16 weight: 16 MiB."""
TOLERANCE = 12 << 20
"""Bytes of communicator, allocator and interpreter. One layer more or less would be 16 MiB."""


def _anonymous() -> int:
    """Return the anonymous memory of this process that is resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    pytest.skip("this kernel does not tell RssAnon")


def _try_out(linear: Any) -> Tensor:
    result: Tensor = nn.functional.linear(torch.ones(1, COLUMNS, dtype=torch.bfloat16), linear.weight)
    return result


def _hold(_rank: int, proved: bool) -> tuple[int, int, int]:  # noqa: FBT001 (passed by position)
    """Load a series; return the bytes that it reports, by how much the process has grown, and its peak."""
    torch.set_num_threads(1)
    _try_out(nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16))  # the kernel's own memory
    gc.collect()
    before, most = _anonymous(), 0
    stack = LAYERS + (RESIDENT if proved else 0)
    series = Series(
        "m", RankGroup.world(), 0, stack, layers=range(stack - LAYERS, stack), try_out=_try_out if proved else None
    )
    layers = []
    for position in range(stack):
        linear = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16)
        linear.weight.requires_grad = False
        series.register(position, linear)
        if linear.weight.numel():
            linear.weight.data.normal_(generator=torch.Generator().manual_seed(position + 1))
        layers.append(linear)
        most = max(most, _anonymous())
    series.post_process()
    most = max(most, _anonymous())
    with torch.inference_mode():
        for _ in range(2):
            for position, linear in enumerate(layers):
                series.reach(position)
                linear(torch.ones(1, COLUMNS, dtype=torch.bfloat16))
    grown = _anonymous() - before
    info = series.info
    series.close()
    assert info.owned_bytes == LAYERS // 2 * LAYER_BYTES
    assert info.replicated_bytes == LAYERS * LAYER_BYTES
    resident_bytes = (stack - LAYERS) * LAYER_BYTES
    return info.owned_bytes + info.window_bytes + resident_bytes, grown, most - before


@pytest.mark.parametrize("proved", [False, True])
def test_stated_bytes_are_what_the_process_holds(proved: bool) -> None:  # noqa: FBT001 (pytest's way)
    """The process has grown by the owned layers and the windows, as stated, give or take less than one layer.

    If resident layers come before the shared ones, it has also grown by these, and by nothing else.
    """
    for stated, grown, peak in run_ranks(2, _hold, proved):
        assert abs(grown - stated) < TOLERANCE, f"stated {stated >> 20} MiB, grown {grown / (1 << 20):.1f} MiB"
        # One layer that was just made; two that are tried.
        assert peak < stated + (3 if proved else 1) * LAYER_BYTES + TOLERANCE, f"peak {peak / (1 << 20):.1f} MiB"
