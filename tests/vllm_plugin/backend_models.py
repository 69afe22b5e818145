"""Tiny models, made by transformers, that vLLM runs through its Transformers backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LAYERS = 4

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("self_attn.o_proj", {}),
    "starcoder2": ("mlp.c_proj", {"num_key_value_heads": 2}),
    "gpt_neox": ("attention.dense", {}),
    "smollm3": ("self_attn.o_proj", {"num_key_value_heads": 2}),
}
"""By model type: a linear of every layer, and what its configuration says beyond the size."""


def save(folder: Path) -> None:
    """Write every model with random weights that are wide enough for each layer to matter to what comes out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM  # type: ignore[import-not-found,unused-ignore]

    size = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
    }
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    for kind, (_, further) in CAUSAL.items():
        torch.manual_seed(24)
        config = AutoConfig.for_model(kind, **size, **further, **special)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / kind)


def keep_plain() -> None:
    """Let unshared linears run the kernel that shared ones run."""
    from swtrace.cli.vllm_ranks import _keep_plain

    _keep_plain(tuple({path for path, _ in CAUSAL.values()}))
