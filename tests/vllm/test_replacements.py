"""The vLLM interfaces that the plugin uses: what it needs, refuses and recognizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, fork_ranks
from tests.support.vllm import inspections


def test_engines_that_cannot_share(folder: Path) -> None:
    """Each feature that prevents sharing is named in its refusal, and nothing else is refused."""
    (why,) = fork_ranks(inspections.refusals, (), folder)
    assert why.pop("nothing") == ""
    words = {
        "offloading": "UVAOffloader",
        "ubatching": "ubatching",
        "elastic": "elastic expert parallelism",
        "sleep": "sleep mode",
        "transfer": "weight transfer",
        "sharded": "sharded_state",
        "encoder": "encoder-decoder",
        "freezing": "max_autotune",
    }
    assert {name: word for name, word in words.items() if word in why[name]} == words


def test_load_formats_that_cannot_share(folder: Path) -> None:
    """Formats with processed weights, or that bypass the layers' loaders, are refused by name."""
    (why,) = fork_ranks(inspections.loads, (), folder)
    assert {"sharded_state", "runai_streamer_sharded", "tensorizer"} <= set(why)
    assert not {"auto", "safetensors", "pt", "dummy", "mistral"} & set(why)
    assert all(f"load format {name} does not load weights one by one" in said for name, said in why.items())


def test_linears_that_are_absorbed_after_loading(folder: Path) -> None:
    """A linear that an attention absorbs after loading, as MLA does kv_b_proj, is found; its neighbours are not."""
    assert fork_ranks(inspections.readers, (), folder) == (("attention (Attention)", ""),)


def test_lists_of_layers(folder: Path) -> None:
    """A model's own list of layers is recognized by its length and linears; else the model is refused by name."""
    (found,) = fork_ranks(inspections.layer_lists, (), folder)
    two, none = found.pop("two"), found.pop("none")
    assert found == {"one": "Decoder", "a tower before it": "Decoder", "another linear": "Tower"}
    assert two.startswith(
        "Model does not build its decoder layers through vLLM's make_layers, so swtrace looks for one "
    )
    assert "but this model has several (fast, slow); unset SWTRACE" in two
    assert none.startswith(
        "vLLM runs this model through its Transformers backend (Backed), so swtrace looks for one list"
    )
    assert "list of 3 decoder layers, but this model has none; unset SWTRACE" in none


def test_phases_of_a_schedule(folder: Path) -> None:
    """A request works on its prompt until it has an output token, and again when it resumes."""
    (phases,) = fork_ranks(inspections.phases, (), folder)
    assert phases == {
        "new": "PREFILL",
        "chunk of a prompt": "PREFILL",
        "resumed": "PREFILL",
        "generating": "DECODE",
        "new and generating": "MIXED",
        "chunk and generating": "MIXED",
        "resumed and generating": "MIXED",
    }


def test_unknown_vllm_is_named(folder: Path) -> None:
    """With SWTRACE_STRICT=1, a vLLM without the seam is an error that names the supported versions."""
    environment = {"SWTRACE": "1", "SWTRACE_STRICT": "1"}
    said = r"SeamError: vLLM 0\.\S+ does not have vllm\.model_executor\.offloader\.base\.create_offloader.*>=0\.27\.1"
    with pytest.raises(RankFailedError, match=said):
        fork_ranks(inspections.seam_gone, (), folder, environment=environment)


@pytest.mark.parametrize("version", ["0.27.0", "0.34.0+cu130", "1.0"])
def test_versions_out_of_range_are_refused(folder: Path, version: str) -> None:
    """An unsupported version is refused, even if it has the seam, and the error names the supported range."""
    environment = {"SWTRACE": "1", "SWTRACE_STRICT": "1"}
    with pytest.raises(RankFailedError, match=rf"SeamError: vLLM {re.escape(version)} is not supported; .*<0\.34"):
        fork_ranks(inspections.other_version, (version,), folder, environment=environment)


def test_unknown_vllm_goes_on(folder: Path) -> None:
    """Without SWTRACE_STRICT, a vLLM that lacks the seam runs unchanged after a warning."""
    assert fork_ranks(inspections.seam_gone, (), folder, environment={"SWTRACE": "1"}) == ("vLLM goes on",)
    assert "swtrace is off: vLLM" in (folder / "rank-0.log").read_text()
