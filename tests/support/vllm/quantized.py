"""Tiny quantized Llamas with random codes, and runs of several models in one rank."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtrace.cli.vllm_ranks import TinyLlama

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

GROUP = 32
PACKED = 8
"""How many four-bit codes fit in an int32."""


def _int8(**activations: object) -> dict[str, Any]:
    """Return the configuration that llm-compressor writes for int8 weights and these activations."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    activations = {"num_bits": 8, "type": "int", **activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations},
        },
        "ignore": ["lm_head"],
    }


QUANTIZATION: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "int8": _int8(symmetric=False, strategy="token", dynamic=True),
    "int8-symmetric": _int8(symmetric=True, strategy="token", dynamic=True),
    "int8-static": _int8(symmetric=True, strategy="tensor", dynamic=False),
}


@dataclass(frozen=True, slots=True)
class QuantizedLlama:
    """A dense Llama whose linears are quantized in one of the ways of :data:`QUANTIZATION`."""

    method: str
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    vocabulary: int = 512

    def save(self, folder: Path) -> None:
        """Write configuration and weights."""
        import torch
        from safetensors.torch import save_file  # type: ignore[import-not-found,unused-ignore]  # comes with vLLM

        generator = torch.Generator().manual_seed(22)
        inner = 2 * self.hidden
        weights: dict[str, torch.Tensor] = {}

        def ones(name: str) -> None:
            weights[f"{name}.weight"] = torch.ones(self.hidden, dtype=torch.bfloat16)

        def random(rows: int, columns: int) -> torch.Tensor:
            wide = torch.randn(rows, columns, generator=generator) * (1.5 / math.sqrt(columns))
            return wide.to(torch.bfloat16)

        for name in ("model.embed_tokens", "lm_head"):
            weights[f"{name}.weight"] = random(self.vocabulary, self.hidden)
        ones("model.norm")
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            shapes = {f"self_attn.{part}_proj": (self.hidden, self.hidden) for part in "qkvo"}
            shapes |= {"mlp.gate_proj": (inner, self.hidden), "mlp.up_proj": (inner, self.hidden)}
            for path, (outputs, inputs) in {**shapes, "mlp.down_proj": (self.hidden, inner)}.items():
                for part, tensor in self._linear(generator, outputs, inputs, random).items():
                    weights[f"{name}.{path}.{part}"] = tensor
            ones(f"{name}.input_layernorm")
            ones(f"{name}.post_attention_layernorm")
        folder.mkdir(parents=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = TinyLlama(self.layers, self.hidden, self.heads, self.vocabulary).configuration()
        if QUANTIZATION[self.method] is not None:
            config["quantization_config"] = QUANTIZATION[self.method]
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    def _linear(
        self, generator: torch.Generator, outputs: int, inputs: int, random: Callable[[int, int], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        import torch

        size = 1.5 / math.sqrt(inputs)
        if self.method == "plain":
            return {"weight": random(outputs, inputs)}
        if self.method.startswith("int8"):
            weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
            scale = torch.rand(outputs, 1, generator=generator).add(0.5) * (size / 73)
            static = {"input_scale": torch.tensor([1 / 32])} if self.method == "int8-static" else {}
            return {"weight": weight, "weight_scale": scale, **static}

        def codes(rows: int, columns: int, low: int = 0, high: int = 15) -> torch.Tensor:
            code = torch.randint(low, high + 1, (PACKED, rows, columns), generator=generator, dtype=torch.int64)
            word = sum(code[place] << (4 * place) for place in range(PACKED))
            return torch.as_tensor(word).to(torch.int32)

        scales = torch.rand(inputs // GROUP, outputs, generator=generator).add(0.5) * (size / 4.6)
        by_input = self.method == "gptq"
        return {
            "qweight": codes(inputs // PACKED, outputs) if by_input else codes(inputs, outputs // PACKED),
            "qzeros": codes(inputs // GROUP, outputs // PACKED, 7, 7 if by_input else 9),
            "scales": scales.to(torch.bfloat16),
        }


def leave_amx_alone() -> None:
    """Make int8 matmuls use the kernel for CPUs without AMX."""
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    cpu.check_cpu_sgl_kernel = lambda *_: False


@dataclass(frozen=True, slots=True)
class Seen:
    """What one model did on one rank."""

    control: tuple[int, ...]
    """Tokens without sharing."""
    tokens: tuple[int, ...]
    outcome: dict[str, str]
    payload: tuple[str, ...]
    """Names of the tensors that are broadcast."""
    waits: int
    """Layers waited for in the last step."""
    held: int = 0
    """Bytes that the linears of the series hold, counting each storage once."""
    replicated: int = 0
    """Bytes that they would hold unshared."""
    missing: str = ""
    """A kernel that the control needs and vLLM's build for this CPU lacks. Nothing was generated."""


def compare(cases: dict[str, dict[str, Any]], rendezvous: Path) -> dict[str, Seen]:
    """Generate twice with each engine, first with sharing off, then on.

    A case's ``prepare``, a function, is called before the engines are made; ``lora`` is an adapter's folder. If a
    control lacks a kernel, later cases are skipped.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
    seen: dict[str, Seen] = {}
    for name, given in cases.items():
        case = dict(given)
        prepare = case.pop("prepare", None)
        if prepare is not None:
            prepare()
        series = case.pop("series", ["self_attn.o_proj"])
        off = {**case, "additional_config": {"swtrace": {"enabled": False}}}
        try:
            control, *_ = _generate(off, rendezvous.with_name(f"{name}-off"))
        except AttributeError as error:
            missing = re.search(r"'_OpNamespace' '(\S+)' object has no attribute '(\S+)'", str(error))
            if missing is None:
                raise
            # The remains of this engine would disturb the next.
            return {**seen, name: Seen((), (), {}, (), 0, missing=".".join(missing.groups()))}
        on = {**case, "additional_config": {"swtrace": {"series": series}}}
        seen[name] = Seen(control, *_generate(on, rendezvous.with_name(f"{name}-on")))
    return seen


def _generate(
    arguments: dict[str, Any], rendezvous: Path
) -> tuple[tuple[int, ...], dict[str, str], tuple[str, ...], int, int, int]:
    import gc

    import torch.distributed as dist
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    arguments = {"enforce_eager": True, **arguments}
    lora = arguments.pop("lora", None)
    # An engine that ends takes the process group with it.
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    engine = LLM(
        skip_tokenizer_init=True,
        dtype="bfloat16",
        distributed_executor_backend="external_launcher",
        kv_cache_memory_bytes=16 << 20,
        max_model_len=128,
        max_num_seqs=4,
        seed=0,
        disable_log_stats=True,
        **arguments,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    request = None if lora is None else LoRARequest("adapter", 1, str(lora))
    (output,) = engine.generate(
        [{"prompt_token_ids": [11, 7, 300, 42]}], sampling, use_tqdm=False, lora_request=request
    )
    config = engine.llm_engine.vllm_config.additional_config
    payload: tuple[str, ...] = ()
    waits = held = replicated = 0
    if config["swtrace"]["enabled"]:
        from swtrace.series.operations import numbered

        for series in numbered():
            if not series.withdrawn:
                payload = tuple(place.name for place in series._running_series.windows[0].layout.places)  # type: ignore[union-attr]
                waits = series.info.num_layers - series.most_unwaited
                tensors = (tensor for linear in series._modules.values() for tensor in linear.parameters(recurse=False))
                storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
                held += sum(storage.nbytes() for storage in storages.values())
                replicated += series.info.replicated_bytes
    outcome = dict(config.get("swtrace_outcome", {}))
    tokens = tuple(output.outputs[0].token_ids)
    dist.barrier()  # no rank leaves while another still waits for its broadcasts
    del engine
    gc.collect()
    if dist.is_initialized():  # older versions leave it behind
        if config["swtrace"]["enabled"]:
            from swtrace.series.operations import forget

            forget()
        cleanup_dist_env_and_memory()
    return tokens, outcome, payload, waits, held, replicated
