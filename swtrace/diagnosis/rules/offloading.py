"""vLLM's settings for offloading, in the words of advice."""

from __future__ import annotations

from swtrace.trace.identity import SeriesInfo

FEWER = "Offload fewer layers (a smaller `--offload-num-in-group` or a larger `--offload-group-size`)"


def larger_prefetch_step(info: SeriesInfo) -> str:
    """Return in words which prefetch steps start copies earlier; empty if this vLLM gives wrong output with each."""
    if info.offload is None or not info.offload.slots_may_collide:
        return "a larger `--offload-prefetch-step`"
    count = info.num_layers
    fitting = next((k for k in range(info.prefetch_step + 1, count) if count % k == 0), None)
    if fitting is None:
        return ""
    return f"`--offload-prefetch-step {fitting}`, which divides the {count} offloaded layers, as this vLLM needs"
