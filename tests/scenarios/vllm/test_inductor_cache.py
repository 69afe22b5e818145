"""Inductor's cache never returns code that was compiled with other waits.

vLLM's CPU build really loads from this cache, whose keys depend on what the code does, not on settings. The keys of
vLLM's own artifacts depend on settings; the CPU build finds these artifacts, but cannot load any.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swtrace.cli.vllm_ranks import Workload, fork_ranks, run_ranks
from tests.support.vllm.caches import Compiled, generate
from tests.support.vllm.shared_runs import SERIES, artifact_keys

if TYPE_CHECKING:
    from tests.support.vllm.shared_runs import Run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

Runs = dict[str, tuple[Compiled, ...]]

SETTINGS: dict[str, dict[str, str]] = {
    "off": {},
    "on": {"SWTRACE": "1"},
    "off again": {},
    "on again": {"SWTRACE": "1"},
    "step 0": {"SWTRACE": "1", "SWTRACE_PREFETCH_STEP": "0"},
    "another linear": {"SWTRACE": "1", "SWTRACE_SERIES": "mlp.down_proj"},
}
"""The runs, in this order, on one cache."""


@pytest.fixture(scope="module")
def runs(compiled: Run, folder: Path) -> Runs:
    """Return all runs of the model of three layers; each rank has a cache of its own, and no artifacts of vLLM."""
    assert compiled.ranks
    workload = Workload(folder / "three", eager=False, tokens=4)
    made: Runs = {}
    for name, settings in SETTINGS.items():
        log = folder / f"inductor-{name}"
        log.mkdir()
        environment = settings and {**settings, "SWTRACE_DIR": str(log / "rings")}
        control = replace(workload, plain_linears=() if settings else (SERIES,))
        arguments = (control, log / "meet", folder / "inductor")
        made[name] = fork_ranks(generate, arguments, log, ranks=2, environment=environment)
    return made


@pytest.fixture
def graphs(runs: Runs) -> int:
    """Return how many graphs this vLLM compiles of the model: 1, or in older versions 2."""
    (graphs,) = {rank.made for rank in runs["off"]}
    return graphs


@pytest.mark.parametrize("name", ["off", "on", "another linear"])
def test_other_waits_are_compiled_anew(runs: Runs, graphs: int, name: str) -> None:
    """Code without waits, with waits, and with waits elsewhere is compiled each time, whatever the cache holds.

    Of two graphs, one has no waits.
    """
    for rank in runs[name]:
        assert rank.made >= 1
        assert rank.found == graphs - rank.made


@pytest.mark.parametrize("name", ["off again", "on again"])
def test_a_repetition_runs_the_code_of_its_kind(runs: Runs, graphs: int, name: str) -> None:
    """The same model with the same settings is not compiled again: the cache is really read."""
    assert {(rank.found, rank.made) for rank in runs[name]} == {(graphs, 0)}


def test_another_prefetch_step_is_the_same_code(runs: Runs, graphs: int) -> None:
    """The code says where to reach and wait, but not how far ahead, so another prefetch step reuses it."""
    assert {(rank.found, rank.made) for rank in runs["step 0"]} == {(graphs, 0)}


@pytest.mark.parametrize("name", ["on", "off again", "on again", "step 0"])
def test_cached_code_generates_the_same(runs: Runs, name: str) -> None:
    """The tokens are the same whether the code was compiled or found, with or without a series, at either step."""
    assert [rank.tokens for rank in runs[name]] == [rank.tokens for rank in runs["off"]]


def test_vllms_artifacts_depend_on_settings(compiled: Run, folder: Path) -> None:
    """A real run with another prefetch step keeps its artifact apart from those of both earlier runs."""
    assert compiled.ranks
    log = folder / "artifact-step-0"
    log.mkdir()
    environment = {**SETTINGS["step 0"], "SWTRACE_DIR": str(log / "rings")}
    ranks = run_ranks(Workload(folder / "three", eager=False), log, environment=environment)
    assert [rank.tokens for rank in ranks] == [rank.tokens for rank in compiled.control]
    keys = artifact_keys(log)
    assert keys
    assert not keys & (artifact_keys(folder / "compiled") | artifact_keys(folder / "compiled-control"))
