"""What a rank holds: exactly (owned + windows) payloads, at every moment of its life."""

from __future__ import annotations

import gc
from typing import Any

import torch
from ranks import run_ranks
from torch import nn
from torch.profiler import ProfilerActivity, profile

from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealTransport

SIDE = 512
PAYLOAD = SIDE * SIDE * 4
LAYERS = 7


def build_and_load(prefetch_step: int, windows: str) -> tuple[Series, list[nn.Linear]]:
    """Build a model layer by layer, load what this rank keeps, and post-process."""
    series = Series("big", RankGroup.world(), 1, 1 + LAYERS, prefetch_step=prefetch_step, windows=windows)
    layers = []
    for layer_idx in range(1, 1 + LAYERS):
        layer = nn.Linear(SIDE, SIDE, bias=False)
        series.register(layer_idx, layer)
        layers.append(layer)
    for layer in layers:
        if layer.weight.numel():
            layer.weight.data.fill_(1.0)
    series.post_process()
    return series, layers


def peak_bytes(events: Any) -> tuple[int, int]:
    """Return the most and the last total of payload-sized allocations, from the allocator's own events."""
    total = most = 0
    for event in events:
        if event.name() == "[memory]" and abs(event.nbytes()) >= PAYLOAD // 2:
            total += event.nbytes()
            most = max(most, total)
    return most, total


CASES = [(0, "static"), (1, "static"), (2, "static"), (2, "rolling")]


def measure_all(_rank: int) -> list[tuple[int, int, int]]:
    """Return for each case the peak and the final bytes, and what (owned + windows) payloads would be.

    One process for all cases: starting torch's profiler takes seconds.
    """
    return [measure(*case) for case in CASES]


def measure(prefetch_step: int, windows: str) -> tuple[int, int, int]:
    """Watch the allocator during construction, loading, post-processing and two steps."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        series, layers = build_and_load(prefetch_step, windows)
        for _ in range(2):
            for layer_idx, layer in enumerate(layers, 1):
                series.reach(layer_idx)
                layer(torch.ones(1, SIDE))
        series.end_step()
    session: Any = profiler.profiler
    most, last = peak_bytes(sorted(session.kineto_results.events(), key=lambda event: event.start_ns()))
    statistics = series.statistics()
    assert statistics.owned_bytes == statistics.owned_layers * PAYLOAD
    assert statistics.window_bytes == statistics.windows * PAYLOAD
    assert statistics.replicated_bytes == LAYERS * PAYLOAD
    return most, last, (statistics.owned_layers + statistics.windows) * PAYLOAD


def test_no_rank_ever_holds_more_than_it_serves_with() -> None:
    """By the allocator's own events, the peak from construction through the first steps is (owned + windows) * W."""
    for cases in run_ranks(2, measure_all):
        for most, last, served in cases:
            assert most == last == served


def test_windows_of_the_static_policy_never_move() -> None:
    """Captured graphs see constant pointers under ``static``; under ``rolling`` only where L % (k + 1) == 0.

    A graph that captured rolling windows would read another layer's weight without a word.
    """

    def pointers(transport: IdealTransport, num_layers: int, windows: str) -> bool:
        series = Series("s", transport.group, 0, num_layers, prefetch_step=1, windows=windows, transport=transport)
        layers = [nn.Linear(4, 4, bias=False) for _ in range(num_layers)]
        for layer_idx, layer in enumerate(layers):
            series.register(layer_idx, layer)
        series.post_process()
        seen: list[list[int]] = []
        for _ in range(4):
            for layer_idx in range(num_layers):
                series.reach(layer_idx)
                series.wait(layer_idx)
            series.end_step()
            seen.append([layer.weight.data_ptr() for layer in layers])
        return all(step == seen[0] for step in seen)

    for num_layers, windows, constant in [(5, "static", True), (6, "static", True), (6, "rolling", True)]:
        assert all(IdealChannel(2).run(lambda t, n=num_layers, w=windows: pointers(t, n, w))) is constant  # type: ignore[misc]
    assert not any(IdealChannel(2).run(lambda t: pointers(t, 5, "rolling")))
