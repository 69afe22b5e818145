"""A filled compile cache of vLLM: code compiled with waits is never confused with code without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swtrace.cli.vllm_ranks import RankResult, Workload, run_ranks
from tests.support.vllm.shared_runs import SERIES, artifact_keys

if TYPE_CHECKING:
    from tests.support.vllm.shared_runs import Run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

Again = dict[str, tuple[tuple[RankResult, ...], set[str]]]


@pytest.fixture(scope="module")
def again(compiled: Run, folder: Path) -> Again:
    """Run again without and with sharing, now that the cache holds the code of both."""
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
        runs[name] = results, artifact_keys(log)
    return runs


@pytest.mark.parametrize(("name", "first"), [("off", "compiled-control"), ("on", "compiled")])
def test_a_repetition_looks_for_its_own_artifact(again: Again, folder: Path, name: str, first: str) -> None:
    """Each kind of run finds the code that it was compiled to before, never the code of the other kind.

    Finding is not loading: on CPU vLLM 0.32 fails to load it, with or without swtrace, and compiles again.
    """
    _, keys = again[name]
    assert keys == artifact_keys(folder / first)


@pytest.mark.parametrize("name", ["off", "on"])
def test_repetitions_generate_the_same(again: Again, compiled: Run, name: str) -> None:
    """If the cache holds both kinds of artifacts, a model generates what it generated with an empty cache."""
    results, _ = again[name]
    assert [rank.tokens for rank in results] == [rank.tokens for rank in compiled.control]
