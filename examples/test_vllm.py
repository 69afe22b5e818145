"""Real vLLM: two ranks on this machine's CPU share `o_proj`, and the test checks their prefetch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swtrace.cli.vllm_ranks import TinyLlama, Workload, run_ranks

if TYPE_CHECKING:
    from pathlib import Path

    from swtrace.testing import Tracing

LAYERS = 6
SERIES = "self_attn.o_proj"


@pytest.mark.vllm
@pytest.mark.swtrace(series=SERIES, warmup=2, min_steps=10, max_stall_ratio=0.9)
def test_prefetch_in_vllm_workers(swtrace: Tracing, tmp_path: Path) -> None:
    """Everything that vLLM's ranks record is available: every wait of every layer, on both ranks.

    The limit is wide because two ranks, gloo and the model compete for the same few cores here. Tighten it on your
    hosts.
    """
    TinyLlama(layers=LAYERS, hidden=128).save(tmp_path / "model")
    environment = {**swtrace.environment, "SWTRACE_SERIES": SERIES, "SWTRACE_GROUP": "world"}
    results = run_ranks(Workload(tmp_path / "model"), tmp_path, environment=environment)
    assert results[0].tokens == results[1].tokens
    steps = swtrace.step_table(series=SERIES, rank=0).rows
    for rank in range(2):
        waits = swtrace.waits(series=SERIES, rank=rank, warmup=1)
        assert waits.rows == (steps - 1) * LAYERS
        received = (waits["outcome"] == "on_time") | (waits["outcome"] == "stalled")
        assert received.sum() == (steps - 1) * LAYERS // 2
        assert set(waits["source_rank"][received]) == {1 - rank}
