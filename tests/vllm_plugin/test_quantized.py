"""Quantized linears of vLLM's CPU build: those whose matmul reads its parameters are shared, others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import quantized

from swtrace.cli.vllm_ranks import fork_ranks

PAYLOADS = {"gptq": {"qweight", "scales"}, "awq": {"qweight", "qzeros", "scales"}}


@pytest.fixture(scope="module")
def seen(folder: Path) -> tuple[dict[str, quantized.Seen], ...]:
    """Return each method's model by rank, and leave the ranks' output in a folder of their own."""
    cases = {}
    for method in ("gptq", "awq", "int8"):
        model = folder / "quantized" / method
        quantized.QuantizedLlama(method).save(model)
        cases[method] = {"model": str(model)}
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "quantized" / "rings")}
    return fork_ranks(
        quantized.compare,
        (cases, folder / "quantized" / "rendezvous"),
        folder / "quantized",
        ranks=2,
        environment=environment,
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "int8"])
def test_tokens_of_quantized_models(seen: tuple[dict[str, quantized.Seen], ...], method: str) -> None:
    """Every rank generates what it generates without sharing, whether the method can be shared or not."""
    for rank in seen:
        assert rank[method].tokens == rank[method].control
        assert len(set(rank[method].tokens)) > 2  # the model says something


@pytest.mark.parametrize("method", PAYLOADS)
def test_payload_is_what_the_matmul_reads(seen: tuple[dict[str, quantized.Seen], ...], method: str) -> None:
    """Four-bit methods share exactly the tensors that are left for the kernel, and wait for each layer."""
    for rank in seen:
        assert rank[method].outcome == {"self_attn.o_proj": "world"}
        # On CPUs with AMX the kernel wants zero points even where the checkpoint means none.
        assert set(rank[method].payload) - {"qzeros"} == PAYLOADS[method] - {"qzeros"}
        assert PAYLOADS[method] <= set(rank[method].payload)
        assert rank[method].waits == 4


def test_a_private_copy_is_refused_by_name(seen: tuple[dict[str, quantized.Seen], ...], folder: Path) -> None:
    """OneDNN's int8 keeps the weight to itself: vLLM runs unshared, and the warning names the method."""
    for number, rank in enumerate(seen):
        assert rank["int8"].outcome == {}
        said = (folder / "quantized" / f"rank-{number}.log").read_text()
        assert (
            "swtrace does not share self_attn.o_proj: CompressedTensorsLinearMethod/CompressedTensorsW8A8Int8" in said
        )
