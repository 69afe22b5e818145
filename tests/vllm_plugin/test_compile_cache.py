"""vLLM's compile cache: what is compiled with waits and what is compiled without are never taken for each other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from vllm_runs import SERIES

from swtrace.cli.vllm_ranks import RankResult, Workload, run_ranks

if TYPE_CHECKING:
    from vllm_runs import Run

_ARTIFACT = re.compile(r"/torch_aot_compile/(\w+)/rank_0_0")

Again = dict[str, tuple[tuple[RankResult, ...], set[str]]]


def _keys(log: Path) -> set[str]:
    """Return the keys under which a rank saved an artifact, loaded one, or tried to: it tells each of these."""
    return set(_ARTIFACT.findall((log / "rank-0.log").read_text()))


@pytest.fixture(scope="module")
def again(compiled: Run, folder: Path) -> Again:
    """Run once more, without sharing and with it, when the cache holds what both were compiled to."""
    assert compiled.ranks
    plain = Workload(folder / "three", eager=False, plain_linears=(SERIES,))
    runs: Again = {}
    for name, workload, environment in (
        ("off", plain, {}),
        ("on", replace(plain, plain_linears=()), {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "rings-again")}),
    ):
        log = folder / f"again-{name}"
        log.mkdir()
        results = run_ranks(workload, log, environment=environment)
        runs[name] = results, _keys(log)
    return runs


def test_artifacts_are_kept_apart(compiled: Run, folder: Path) -> None:
    """With the same model, what is compiled without a series has another key than what is compiled with one."""
    assert compiled.ranks
    off, on = _keys(folder / "compiled-control"), _keys(folder / "compiled")
    assert off
    assert on
    assert not off & on


@pytest.mark.parametrize(("name", "first"), [("off", "compiled-control"), ("on", "compiled")])
def test_a_repetition_looks_for_its_own_artifact(again: Again, folder: Path, name: str, first: str) -> None:
    """Each kind of run finds what it was compiled to before, and never the other's.

    Found is not loaded: vLLM 0.32 fails to load any on CPU, with or without swtrace, and compiles again.
    """
    _, keys = again[name]
    assert keys == _keys(folder / first)


@pytest.mark.parametrize("name", ["off", "on"])
def test_repetitions_say_the_same(again: Again, compiled: Run, name: str) -> None:
    """With a cache that holds both kinds of artifacts a model generates what it generated with an empty one."""
    results, _ = again[name]
    assert [rank.tokens for rank in results] == [rank.tokens for rank in compiled.control]
