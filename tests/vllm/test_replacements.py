"""What the plugin replaces in vLLM: a vLLM that lacks it and an engine that cannot share both run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, fork_ranks
from tests.support.vllm import inspections
from tests.support.vllm.layouts import engine_that_offloads
from tests.support.vllm.shared_runs import refusals

pytestmark = pytest.mark.vllm


def test_refused_engine_is_a_metric(folder: Path) -> None:
    """An engine that cannot share keeps its offloader, and every requested linear is refused with its reason."""
    rings = folder / "rings-engine"
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings), "SWTRACE_SERIES": "a.b,c"}
    assert fork_ranks(engine_that_offloads, (folder / "refused", environment), folder) == ("UVAOffloader",)
    # The fourth data-parallel replica of a dense model: torch calls it rank 0, the run does not.
    ((rank, why),) = refusals(rings, ranks=1).items()
    assert rank == 3
    assert why.keys() == {"a.b", "c"}
    assert all("turn its weight offloading off" in reason for reason in why.values())


def test_the_prefetch_offloader_is_watched(folder: Path) -> None:
    """Where vLLM prefetches layers from host memory, swtrace watches, and nothing is refused."""
    rings = folder / "rings-watched"
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings)}
    made = fork_ranks(engine_that_offloads, (folder / "watched", environment, "PrefetchOffloader"), folder)
    assert made == ("PrefetchWatcher",)
    assert not rings.exists()


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
