"""vLLM's settings for offloading, in the words of advice."""

from __future__ import annotations

from swtrace.placement import slots_collide
from swtrace.trace.identity import SeriesInfo

FEWER = "Offload fewer layers (a smaller `--offload-num-in-group` or a larger `--offload-group-size`)"


def fewer_or(info: SeriesInfo, gain: str) -> str:
    """Return the advice to offload fewer layers or, where one is right, to ``gain`` with a larger prefetch step."""
    larger = larger_prefetch_step(info)
    return f"{FEWER}, or {gain} with {larger}." if larger else f"{FEWER}."


def larger_prefetch_step(info: SeriesInfo) -> str:
    """Return in words which prefetch steps start copies earlier; empty if this vLLM gives wrong output with each."""
    if info.offload is None or not info.offload.slots_may_collide:
        return "a larger `--offload-prefetch-step`"
    count = info.num_layers
    fitting = next((k for k in range(info.prefetch_step + 1, count) if not slots_collide(k, count)), None)
    if fitting is None:
        return ""
    return f"`--offload-prefetch-step {fitting}`, which divides the {count} offloaded layers, as this vLLM needs"
