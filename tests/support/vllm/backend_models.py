"""Tiny models, made by transformers, that vLLM runs through its Transformers backend; and a BERT."""

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
"""By model type: a linear of every layer, and its configuration apart from the size."""


def save(folder: Path) -> None:
    """Write every model with random weights, large enough that each layer affects the output."""
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


ENCODER_SERIES = "attention.output.dense"


def save_encoder(folder: Path) -> None:
    """Write a BERT, whose layers vLLM builds in a list, with the tokenizer that its pooling runner needs."""
    import torch
    from transformers import AutoConfig, AutoModel, BertTokenizerFast

    torch.manual_seed(25)
    config = AutoConfig.for_model(
        "bert",
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        initializer_range=0.15,
    )
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(507))]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)


def embed(model: Path, meeting: Path, *, shared: bool) -> tuple[list[list[float]], dict[str, str], int]:
    """Return the embeddings of two prompts, what is shared, and the layers that were waited for. Runs inside a rank."""
    import os

    import torch.distributed as dist
    from vllm import LLM

    from swtrace.cli.vllm_ranks import _keep_plain
    from swtrace.series.operations import numbered

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    if not shared:
        _keep_plain((ENCODER_SERIES,))
    engine = LLM(
        model=str(model),
        runner="pooling",
        dtype="bfloat16",
        enforce_eager=True,
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=0.05,
        max_model_len=128,
        max_num_seqs=4,
        disable_log_stats=True,
        additional_config={"swtrace": {"enabled": shared, "series": [ENCODER_SERIES]}},
    )
    prompts = [{"prompt_token_ids": tokens} for tokens in ([11, 7, 300, 42], [5, 6, 7])]
    outputs = engine.embed(prompts, use_tqdm=False)
    waits = sum(series.info.num_layers - series.most_unwaited for series in numbered())
    dist.barrier()  # no rank leaves while another still waits for its broadcasts
    outcome = engine.llm_engine.vllm_config.additional_config.get("swtrace_outcome", {})
    return [output.outputs.embedding for output in outputs], dict(outcome), waits


def keep_plain() -> None:
    """Make unshared linears use the kernel of shared ones."""
    from swtrace.cli.vllm_ranks import _keep_plain

    _keep_plain(tuple({path for path, _ in CAUSAL.values()}))
