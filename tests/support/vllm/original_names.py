"""A model whose own code shares its linears through the three original function names. Runs inside a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def generate(model: str, rendezvous: Path, *, eager: bool) -> Answer:
    """Generate without and with sharing. Return the tokens of both, and the series' statistics."""
    import torch

    from swtrace.series.functions import series_of
    from tests.support.vllm.odd_models import keep_plain
    from tests.support.vllm.quantized import _generate

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
    keep_plain()
    engine = {"model": model, "enforce_eager": eager}
    off = {**engine, "additional_config": {"swtrace": {"enabled": False}}}
    control, *_ = _generate(off, rendezvous.with_name("off"))
    layers = share_by_the_original_names()
    on = {**engine, "additional_config": {"swtrace": {"series": ["mlp.down_proj"]}}}
    shared, *_ = _generate(on, rendezvous.with_name("on"))
    statistics = series_of(layers[0]).statistics()
    return {
        "control": control,
        "shared": shared,
        "unwaited": statistics.most_unwaited,
        "steps": statistics.steps,
        "aborted": statistics.aborted_steps,
    }


def share_by_the_original_names() -> list[Any]:
    """Make vLLM's Llama register, post-process and reach in its own code, for the rest of this process.

    Returns:
        The list to which each linear is added when the model is built.
    """
    import torch
    from vllm.distributed.parallel_state import get_world_group
    from vllm.model_executor.model_loader import base_loader
    from vllm.model_executor.models import llama

    from swtrace.series import (
        post_process_after_loading_for_shared_weight_series,
        reach_layer_for_shared_weight_series,
        register_layer_to_shared_weight_series,
    )

    layers: list[Any] = []
    build, process = llama.LlamaDecoderLayer.__init__, base_loader.process_weights_after_loading
    run = llama.LlamaDecoderLayer.forward

    def build_and_register(self: Any, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        build(self, vllm_config, prefix, **kwargs)
        linear, index = self.self_attn.o_proj, int(prefix.rsplit(".", 1)[1])
        count = vllm_config.model_config.hf_config.num_hidden_layers
        register_layer_to_shared_weight_series("o_proj", get_world_group(), 0, count, index, linear, 1)
        layers.append(linear)

    def reach_and_run(self: Any, positions: Any, hidden_states: torch.Tensor, residual: Any) -> Any:
        reach_layer_for_shared_weight_series(self.self_attn.o_proj)
        return run(self, positions, hidden_states, residual)

    def process_all(*args: Any, **kwargs: Any) -> None:
        process(*args, **kwargs)
        for linear in layers:
            post_process_after_loading_for_shared_weight_series(linear)

    llama.LlamaDecoderLayer.__init__ = build_and_register
    llama.LlamaDecoderLayer.forward = reach_and_run
    base_loader.process_weights_after_loading = process_all
    return layers
