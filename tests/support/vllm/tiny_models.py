"""Checkpoints of models that vLLM loads in a second, with random weights and no tokenizer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """Random bfloat16 weights with the names of a Hugging Face checkpoint. The same seed gives the same weights."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def matrix(self, name: str, *shape: int) -> None:
        """Add a random weight, large enough that every layer affects the generated tokens."""
        import torch

        wide = torch.randn(*shape, generator=self._generator) * (1.5 / math.sqrt(shape[-1]))
        self.tensors[f"{name}.weight"] = wide.to(torch.bfloat16)

    def norm(self, name: str, size: int) -> None:
        """Add a norm that changes nothing."""
        import torch

        self.tensors[f"{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write configuration and weights."""
        from safetensors.torch import save_file  # type: ignore[import-not-found,unused-ignore]  # comes with vLLM

        folder.mkdir(parents=True)
        common = {
            "hidden_act": "silu",
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        (folder / "config.json").write_text(json.dumps({**common, **config}, indent=2))
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True, slots=True)
class TinyMixtral:
    """A mixture of experts: its data-parallel ranks run in lockstep."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    experts: int = 4
    vocabulary: int = 512

    def save(self, folder: Path) -> None:
        """Write configuration and weights."""
        inner = 2 * self.hidden
        weights = Checkpoint(21)
        weights.matrix("model.embed_tokens", self.vocabulary, self.hidden)
        weights.norm("model.norm", self.hidden)
        weights.matrix("lm_head", self.vocabulary, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                weights.matrix(f"{name}.self_attn.{projection}", self.hidden, self.hidden)
            weights.matrix(f"{name}.block_sparse_moe.gate", self.experts, self.hidden)
            for expert in range(self.experts):
                for projection in ("w1", "w3"):
                    weights.matrix(f"{name}.block_sparse_moe.experts.{expert}.{projection}", inner, self.hidden)
                weights.matrix(f"{name}.block_sparse_moe.experts.{expert}.w2", self.hidden, inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                weights.norm(f"{name}.{norm}", self.hidden)
        weights.save(
            folder,
            {
                "architectures": ["MixtralForCausalLM"],
                "model_type": "mixtral",
                "hidden_size": self.hidden,
                "intermediate_size": inner,
                "num_attention_heads": self.heads,
                "num_hidden_layers": self.layers,
                "num_key_value_heads": self.heads,
                "num_local_experts": self.experts,
                "num_experts_per_tok": 2,
                "sliding_window": None,
                "vocab_size": self.vocabulary,
            },
        )


@dataclass(frozen=True, slots=True)
class TinyDeepSeek:
    """An MLA model with dense MLPs: tensor parallelism splits its heads, and replicates what comes before them."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    query_rank: int = 64
    vocabulary: int = 512

    KEY_RANK = 512
    """With 64 for rope, the only size that MLA on CPU supports."""
    ROPE = 64
    HEAD = 32

    @property
    def layer_bytes(self) -> int:
        """Size of one layer's ``self_attn.fused_qkv_a_proj``."""
        return (self.query_rank + self.KEY_RANK + self.ROPE) * self.hidden * 2

    def save(self, folder: Path) -> None:
        """Write configuration and weights."""
        inner = 2 * self.hidden
        weights = Checkpoint(22)
        weights.matrix("model.embed_tokens", self.vocabulary, self.hidden)
        weights.norm("model.norm", self.hidden)
        weights.matrix("lm_head", self.vocabulary, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            attention = f"{name}.self_attn"
            weights.matrix(f"{attention}.q_a_proj", self.query_rank, self.hidden)
            weights.norm(f"{attention}.q_a_layernorm", self.query_rank)
            weights.matrix(f"{attention}.q_b_proj", self.heads * (self.HEAD + self.ROPE), self.query_rank)
            weights.matrix(f"{attention}.kv_a_proj_with_mqa", self.KEY_RANK + self.ROPE, self.hidden)
            weights.norm(f"{attention}.kv_a_layernorm", self.KEY_RANK)
            weights.matrix(f"{attention}.kv_b_proj", self.heads * 2 * self.HEAD, self.KEY_RANK)
            weights.matrix(f"{attention}.o_proj", self.hidden, self.heads * self.HEAD)
            weights.matrix(f"{name}.mlp.gate_proj", inner, self.hidden)
            weights.matrix(f"{name}.mlp.up_proj", inner, self.hidden)
            weights.matrix(f"{name}.mlp.down_proj", self.hidden, inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                weights.norm(f"{name}.{norm}", self.hidden)
        weights.save(
            folder,
            {
                "architectures": ["DeepseekV2ForCausalLM"],
                "model_type": "deepseek_v2",
                "hidden_size": self.hidden,
                "intermediate_size": inner,
                "moe_intermediate_size": 64,
                "first_k_dense_replace": self.layers,
                "moe_layer_freq": 1,
                "n_routed_experts": 4,  # in no layer: the first ones are dense
                "num_attention_heads": self.heads,
                "num_hidden_layers": self.layers,
                "num_key_value_heads": self.heads,
                "q_lora_rank": self.query_rank,
                "kv_lora_rank": self.KEY_RANK,
                "qk_nope_head_dim": self.HEAD,
                "qk_rope_head_dim": self.ROPE,
                "v_head_dim": self.HEAD,
                "vocab_size": self.vocabulary,
            },
        )
