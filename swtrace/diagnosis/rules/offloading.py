"""vLLM's settings for offloading, in the words of advice."""

from __future__ import annotations

from swtrace.trace.identity import SeriesInfo

FEWER = "Offload fewer layers (a smaller `--offload-num-in-group` or a larger `--offload-group-size`)"


def that_divides(info: SeriesInfo) -> str:
    """Return what to add where another prefetch step is advised: which ones this vLLM is right for, if not for all."""
    if info.offload is None or info.offload.any_prefetch_step:
        return ""
    return f", a number that divides the {info.num_layers} offloaded layers (vllm#54975)"
