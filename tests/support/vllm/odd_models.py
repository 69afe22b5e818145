"""Llamas that are built, or compute, in an unusual way. Each function changes vLLM's for the rest of the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def keep_plain() -> None:
    """Make unshared linears use the kernel of shared ones."""
    from swtrace.cli.vllm_ranks import _keep_plain

    _keep_plain(("self_attn.o_proj", "mlp.down_proj"))


def fuse() -> None:
    """Make layers that read o_proj without ``apply``. The last does not use it; the third has another down_proj."""
    import torch
    from vllm.model_executor.layers.linear import RowParallelLinear
    from vllm.model_executor.models import llama

    class FusedOutput(RowParallelLinear):  # type: ignore[misc]  # vLLM is absent where types are checked
        """Reads its weight in its forward."""

        def forward(self, input_: torch.Tensor) -> Any:
            return torch.nn.functional.linear(input_, self.weight), None

    class Unknown(torch.nn.Module):
        """A linear that vLLM's classes do not know."""

        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty_like(linear.weight), requires_grad=False)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.nn.functional.linear(x, self.weight), None

    build = llama.LlamaDecoderLayer.__init__

    def build_odd(self: Any, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        build(self, vllm_config, prefix, **kwargs)
        attention = self.self_attn

        def attend_without(positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
            qkv, _ = attention.qkv_proj(hidden_states)
            q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
            attended: torch.Tensor = attention.attn(*attention.rotary_emb(positions, q, k), v)
            return attended

        attention.o_proj.__class__ = FusedOutput
        layer = int(prefix.rsplit(".", 1)[1])
        if layer == 2:
            self.mlp.down_proj = Unknown(self.mlp.down_proj)
        if layer == 3:
            attention.forward = attend_without

    keep_plain()
    llama.LlamaDecoderLayer.__init__ = build_odd


def build_without_vllm() -> None:
    """Build the decoder layers in a list of the model's own."""
    import torch
    from vllm.model_executor.models import llama

    def make_layers(count: int, make: Any, prefix: str) -> Any:
        return 0, count, torch.nn.ModuleList(make(prefix=f"{prefix}.{layer}") for layer in range(count))

    keep_plain()
    llama.make_layers = make_layers


def save_adapter(folder: Path, *, layers: int = 4, hidden: int = 128, rank: int = 8) -> None:
    """Write a LoRA adapter for every o_proj that changes what the model generates."""
    import torch
    from safetensors.torch import save_file  # type: ignore[import-not-found,unused-ignore]  # comes with vLLM

    generator = torch.Generator().manual_seed(23)
    weights = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = (torch.randn(rank, hidden, generator=generator) / 16).to(torch.bfloat16)
        weights[f"{name}.lora_B.weight"] = (torch.randn(hidden, rank, generator=generator) / rank).to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
