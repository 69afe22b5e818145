"""Copies that start only when they are waited for are found, with their cause; no sentence speaks of sharing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtrace.diagnosis.finding import Level
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_verdict
from tests.support.verdicts import finding, kinds

_OTHER_KINDS = re.compile(
    r"transport|copier|\bshar(?:e|ed|ing) |owner|(?:source:|from) rank|window|SWTRACE_PREFETCH_STEP|broadcast",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    ("plan", "cause", "advice"),
    [
        (Plan(group_size=4, num_in_group=3, steps=12), "3 consecutive layers", "`--offload-prefetch-step 2`"),
        (
            Plan(prefetch_step=2, running=12, fallback=True, steps=12),
            "not started ahead",
            "never run on this rank",
        ),
    ],
    ids=["consecutive", "never run"],
)
def test_copies_that_nothing_hides_are_explained(tmp_path: Path, plan: Plan, cause: str, advice: str) -> None:
    """No compute lies between issue and wait: the sentence says why, and the stalls are its consequences."""
    said = offloading_verdict(tmp_path, plan, Durations(compute_ns=10_000))
    found = finding(said, "synchronous_copy")
    assert found.level is Level.BAD
    assert found.numbers["share"] > 0.3
    assert cause in found.sentence
    assert advice in found.advice
    assert finding(said, "stalled").consequence_of


@pytest.mark.parametrize("compute_ns", [200_000, 1_000_000])
def test_copies_that_started_ahead_are_no_finding(tmp_path: Path, compute_ns: int) -> None:
    """Neither if only part of each hides, nor if they hide."""
    assert "synchronous_copy" not in kinds(offloading_verdict(tmp_path, Plan(steps=12), Durations(compute_ns)))


@pytest.mark.parametrize("compute_ns", [10_000, 150_000, 250_000, 310_000, 1_000_000])
@pytest.mark.parametrize("prefetch_step", [1, 2, 3])
@pytest.mark.parametrize("pinned", [True, False])
def test_sentences_about_offloaded_layers_use_no_words_of_sharing(
    tmp_path: Path, compute_ns: int, prefetch_step: int, *, pinned: bool
) -> None:
    """Whatever is found, layers are offloaded, and settings are vLLM's."""
    plan = Plan(prefetch_step=prefetch_step, pinned=pinned, steps=12)
    for found in offloading_verdict(tmp_path, plan, Durations(compute_ns, copy_ns=300_000)).findings:
        for text in (found.sentence, found.advice, *found.evidence):
            assert not _OTHER_KINDS.search(text), (found.kind, text)
