"""Models that read a shared linear, or are built, in an unusual way."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import odd_models, quantized

pytestmark = pytest.mark.vllm

Ranks = tuple[dict[str, quantized.Seen], ...]
DOWN, OUT = "mlp.down_proj", "self_attn.o_proj"


@pytest.fixture(scope="module")
def odd(folder: Path) -> Path:
    """Return the folder in which the ranks leave their output."""
    return folder / "odd"


@pytest.fixture(scope="module")
def seen(odd: Path) -> Ranks:
    """Return, by rank, what each kind of model generated."""
    quantized.QuantizedLlama("plain").save(odd / "model")
    odd_models.save_adapter(odd / "adapter")
    model = {"model": str(odd / "model")}
    adapter = {"enable_lora": True, "max_lora_rank": 8, "lora": str(odd / "adapter")}
    cases = {
        "lora": {**model, **adapter, "prepare": odd_models.keep_plain},
        "fused": {**model, "series": [OUT, DOWN], "prepare": odd_models.fuse},
        "own list": {**model, "prepare": odd_models.build_without_vllm},  # of the odd layers above
    }
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(odd / "rings")}
    return fork_ranks(quantized.compare, (cases, odd / "rendezvous"), odd, ranks=2, environment=environment)


@pytest.mark.parametrize("case", ["lora", "fused", "own list"])
def test_tokens_of_odd_models(seen: Ranks, case: str) -> None:
    """Every rank generates what it generates without sharing."""
    for rank in seen:
        assert rank[case].tokens == rank[case].control
        assert len(set(rank[case].tokens)) > 1  # the model's output varies


def test_adapters_wait(seen: Ranks) -> None:
    """LoRA applies the base weight without the linear's forward, and still waits for every layer."""
    for rank in seen:
        assert rank["lora"].outcome == {OUT: "world"}
        assert rank["lora"].waits == 4


def test_fused_linears_wait(seen: Ranks) -> None:
    """A linear that reads its weight without its quant method is waited for in its forward."""
    for rank in seen:
        assert rank["fused"].outcome == {OUT: "world"}
        assert rank["fused"].waits == 3


def test_a_layer_that_is_never_waited_for_is_reported(seen: Ranks, odd: Path) -> None:
    """If a step does not read a layer's linear, its series warns once, not once per step; two of the series do."""
    for rank in range(len(seen)):
        said = (odd / f"rank-{rank}.log").read_text()
        assert said.count("a step did not wait for 1 of ") == 2


def test_a_layer_without_the_linear_withdraws_the_series(seen: Ranks, odd: Path) -> None:
    """If a later layer lacks the linear, its series is withdrawn while the model is built; others are shared."""
    for rank in range(len(seen)):
        said = (odd / f"rank-{rank}.log").read_text()
        assert said.count("swtrace does not share mlp.down_proj: layer 2 has no such linear") == 1


def test_a_model_that_builds_its_own_layers_shares(seen: Ranks) -> None:
    """A model that bypasses vLLM's layer builder is shared through its list of layers, with equal memory and waits."""
    for rank in seen:
        assert rank["own list"].outcome == {OUT: "world"}
        assert rank["own list"].waits == rank["fused"].waits
        assert rank["own list"].held == rank["fused"].held < rank["own list"].replicated
