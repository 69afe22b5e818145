"""Models that vLLM does not build through ``make_layers`` are shared through their own list of layers."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import backend_models, quantized
from tests.support.vllm.backend_models import CAUSAL, ENCODER_SERIES, LAYERS, embed, save_encoder
from tests.support.vllm.offloader_sources import installed

pytestmark = pytest.mark.vllm

IN_CI = ("olmo2", "starcoder2")
"""One whose linears are named as Llama's are, and one whose are not."""


@pytest.fixture(scope="module")
def models(folder: Path) -> Path:
    """Return the folder of the models."""
    here = folder / "backend"
    here.mkdir()
    fork_ranks(backend_models.save, (here,), here)
    return here


@pytest.fixture(
    scope="module", params=[kind if kind in IN_CI else pytest.param(kind, marks=pytest.mark.slow) for kind in CAUSAL]
)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the type of a model."""
    if (installed() / f"model_executor/models/{request.param}.py").exists():
        pytest.skip(f"this vLLM has a {request.param} of its own")
    return str(request.param)


@pytest.fixture(scope="module")
def output(models: Path, kind: str) -> Path:
    """Return the folder in which the model's ranks leave their output."""
    here = models / f"{kind}-output"
    here.mkdir()
    return here


@pytest.fixture(scope="module")
def seen(models: Path, kind: str, output: Path) -> tuple[quantized.Seen, ...]:
    """Return, by rank, what the model generated with and without sharing."""
    case = {"model": str(models / kind), "series": [CAUSAL[kind][0]], "prepare": backend_models.keep_plain}
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(output / "rings")}
    ranks = fork_ranks(
        quantized.compare, ({kind: case}, output / "rendezvous"), output, ranks=2, environment=environment
    )
    return tuple(rank[kind] for rank in ranks)


def test_it_runs_through_the_backend(seen: tuple[quantized.Seen, ...], output: Path) -> None:
    """The models really run through vLLM's Transformers backend, both with and without sharing."""
    for number in range(len(seen)):
        said = (output / f"rank-{number}.log").read_text()
        assert said.count("Using Transformers modeling backend") == 2


def test_tokens_are_equal(seen: tuple[quantized.Seen, ...]) -> None:
    """Every rank generates what it generates without sharing."""
    for rank in seen:
        assert rank.tokens == rank.control
        assert len(set(rank.tokens)) > 2  # the model's output varies


def test_each_layer_is_shared_and_waited_for(seen: tuple[quantized.Seen, ...], kind: str) -> None:
    """The linear asked for is shared in all layers, and each is waited for in a step."""
    for rank in seen:
        assert rank.outcome == {CAUSAL[kind][0]: "world"}
        assert rank.waits == LAYERS


def test_the_memory_is_saved(seen: tuple[quantized.Seen, ...]) -> None:
    """Half of the layers and the windows are held on each rank, not all layers."""
    for rank in seen:
        layer = rank.replicated // LAYERS
        assert rank.held <= (LAYERS // 2 + 1) * layer < rank.replicated


@pytest.mark.slow
def test_a_compiled_model_shares(models: Path) -> None:
    """Compiled, a model of the backend generates what it generates compiled without sharing."""
    case = {
        "model": str(models / "olmo2"),
        "series": [CAUSAL["olmo2"][0]],
        "prepare": backend_models.keep_plain,
        "enforce_eager": False,
    }
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(models / "rings-compiled")}
    for rank in fork_ranks(
        quantized.compare, ({"olmo2": case}, models / "compiled"), models, ranks=2, environment=environment
    ):
        assert rank["olmo2"].tokens == rank["olmo2"].control
        assert rank["olmo2"].outcome == {CAUSAL["olmo2"][0]: "world"}
        assert rank["olmo2"].waits == LAYERS


def test_an_encoder_shares(folder: Path) -> None:
    """A BERT, whose layers vLLM keeps in a list of its own, embeds bit for bit what it embeds without sharing."""
    here = folder / "encoder"
    here.mkdir()
    fork_ranks(save_encoder, (here / "model",), here)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(here / "rings")}
    runs = [
        fork_ranks(
            functools.partial(embed, shared=shared),
            (here / "model", here / f"meet-{shared}"),
            here,
            ranks=2,
            environment=environment,
        )
        for shared in (False, True)
    ]
    for control, shared in zip(*runs, strict=True):
        assert shared == (control[0], {ENCODER_SERIES: "world"}, LAYERS)
        assert len(set(control[0][0])) > LAYERS  # the model's output varies
