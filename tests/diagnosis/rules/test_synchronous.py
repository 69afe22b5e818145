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


CONSECUTIVE = Plan(group_size=4, num_in_group=3, steps=12)
NEVER_RUN = Plan(prefetch_step=2, running=12, fallback=True, steps=12)
COLLIDING = Plan(prefetch_step=5, steps=12, colliding=True)


@pytest.mark.parametrize(
    ("plan", "cause", "advice", "share"),
    [
        (CONSECUTIVE, "3 consecutive layers", "a larger `--offload-prefetch-step`", 0.9),
        (
            NEVER_RUN,
            "not started ahead. Instead, 2 of the copies per step were never waited for.",
            "never run on this rank",
            0.6,
        ),
    ],
    ids=["consecutive", "never run"],
)
def test_copies_that_nothing_hides_are_explained(
    tmp_path: Path, plan: Plan, cause: str, advice: str, share: float
) -> None:
    """No compute lies between issue and wait: the sentence says why, and the stalls are its consequences."""
    said = offloading_verdict(tmp_path, plan, Durations(compute_ns=10_000))
    found = finding(said, "synchronous_copy")
    assert found.level is Level.BAD
    assert found.numbers["share"] > share
    assert cause in found.sentence
    assert advice in found.advice
    assert finding(said, "stalled").consequence_of


@pytest.mark.parametrize("compute_ns", [200_000, 1_000_000])
def test_copies_that_started_ahead_are_no_finding(tmp_path: Path, compute_ns: int) -> None:
    """Neither if only part of each hides, nor if they hide."""
    assert "synchronous_copy" not in kinds(offloading_verdict(tmp_path, Plan(steps=12), Durations(compute_ns)))


@pytest.mark.parametrize(
    ("plan", "compute_ns", "kind"),
    [
        (CONSECUTIVE, 10_000, "synchronous_copy"),
        (NEVER_RUN, 10_000, "synchronous_copy"),
        (COLLIDING, 1_000_000, "slot_collision"),
        (Plan(pinned=False, steps=12), 250_000, "unpinned_memory"),
        (Plan(group_size=1, prefetch_step=3, steps=12), 10_000, "channel_bound"),
        (Plan(group_size=1, prefetch_step=3, steps=12), 310_000, "channel_tight"),
        (Plan(group_size=1, steps=30), 1_000_000, "prefetch_step"),
        (Plan(steps=12), 265_000, "partly_hidden"),
        (Plan(steps=12), 1_000_000, "hidden"),
    ],
)
def test_sentences_about_offloaded_layers_use_no_words_of_sharing(
    tmp_path: Path, plan: Plan, compute_ns: int, kind: str
) -> None:
    """Whatever is found, layers are offloaded, and settings are vLLM's."""
    said = offloading_verdict(tmp_path, plan, Durations(compute_ns, copy_ns=300_000))
    assert kind in kinds(said)
    for found in said.findings:
        for text in (found.sentence, found.advice, *found.evidence):
            assert not _OTHER_KINDS.search(text), (found.kind, text)
