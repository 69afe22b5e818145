"""Quantized linears of vLLM's CPU build are shared if their matmul reads their parameters, and refused otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import quantized

pytestmark = pytest.mark.vllm

PAYLOADS = {"gptq": {"qweight", "scales"}, "awq": {"qweight", "qzeros", "scales"}}
SYMMETRIC = ("int8-symmetric", "int8-static")
PRIVATE = ("int8", "int8-static-onednn")
"""OneDNN keeps a copy: always for asymmetric activations, and on CPUs without AMX also for symmetric ones."""
METHODS = ("gptq", "awq", *SYMMETRIC, *PRIVATE)
REFUSAL = "swtrace does not share self_attn.o_proj: CompressedTensorsLinearMethod/CompressedTensorsW8A8Int8"


Ranks = tuple[dict[str, quantized.Seen], ...]


@pytest.fixture(scope="module")
def seen(folder: Path) -> Ranks:
    """Return, by rank, what each method's model generated. The ranks' output is in a folder of its own."""
    here = folder / "quantized"
    environment = {
        "SWTRACE": "1",
        "SWTRACE_DIR": str(here / "rings"),
        "VLLM_CPU_SGL_KERNEL": "1",  # without it vLLM 0.27 takes oneDNN, AMX or not; later ones don't ask
    }
    seen: Ranks = ({}, {})
    for method in METHODS:
        stored = method.removesuffix("-onednn")
        case: dict[str, Any] = {"model": str(here / stored)}
        if method == stored:
            quantized.QuantizedLlama(method).save(here / stored)
        else:
            case["prepare"] = quantized.leave_amx_alone
        # Each in processes of its own: an engine that cannot be made leaves groups behind.
        found = fork_ranks(
            quantized.compare, ({method: case}, here / "rendezvous"), here, ranks=2, environment=environment
        )
        for rank, one in zip(seen, found, strict=True):
            rank.update(one)
    return seen


def _run(seen: Ranks, method: str) -> Ranks:
    """Return the results of all methods, or skip if this method's control cannot run on this CPU."""
    missing = {rank[method].missing for rank in seen} - {""}
    if missing:
        pytest.skip(
            f"without swtrace, too, vLLM cannot run {method} here: its build for this CPU lacks {missing.pop()}"
        )
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_quantized_models(seen: Ranks, method: str) -> None:
    """Every rank generates what it generates without sharing, whether the method can be shared or not."""
    for rank in _run(seen, method):
        assert rank[method].tokens == rank[method].control
        assert len(set(rank[method].tokens)) > 2  # the model's output varies


@pytest.mark.parametrize("method", PAYLOADS)
def test_payload_is_what_the_matmul_reads(seen: Ranks, method: str) -> None:
    """Four-bit methods share exactly the tensors that the kernel reads, and wait for each layer."""
    for rank in _run(seen, method):
        assert rank[method].outcome == {"self_attn.o_proj": "world"}
        # On CPUs with AMX the kernel wants zero points even where the checkpoint means none.
        assert set(rank[method].payload) - {"qzeros"} == PAYLOADS[method] - {"qzeros"}
        assert PAYLOADS[method] <= set(rank[method].payload)
        assert rank[method].waits == 4


@pytest.mark.parametrize("method", SYMMETRIC)
def test_symmetric_int8_is_shared_where_its_kernel_reads_the_layer(seen: Ranks, method: str) -> None:
    """With AMX the kernel reads packed codes and scales on the layer, and they are shared; without, all are refused."""
    import torch

    amx = torch.cpu._is_amx_tile_supported()
    for rank in _run(seen, method):
        assert rank[method].outcome == ({"self_attn.o_proj": "world"} if amx else {})
        assert {"weight", "weight_scale"} <= {*rank[method].payload} or not amx
        assert rank[method].waits == (4 if amx else 0)


def test_a_private_copy_is_refused_by_name(seen: Ranks, folder: Path) -> None:
    """OneDNN's int8 keeps a private copy of the weight: vLLM runs unshared, and the warning names the method."""
    for method in PRIVATE:
        _run(seen, method)
    for number, rank in enumerate(seen):
        refused = [method for method in METHODS if not (rank[method].outcome or rank[method].missing)]
        assert {*PRIVATE} <= {*refused}
        assert (folder / "quantized" / f"rank-{number}.log").read_text().count(REFUSAL) == len(refused)
