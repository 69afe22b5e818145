"""Copies that start only when they are waited for are found, with their cause; no sentence speaks of sharing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from swtrace.diagnosis.finding import Level
from tests.support.offloaded import offloaded
from tests.support.verdicts import even, finding, kinds

_OTHER_KINDS = re.compile(
    r"transport|copier|\bshar(?:e|ed|ing) |owner|(?:source:|from) rank|window|SWTRACE_PREFETCH_STEP|broadcast",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    ("offload", "cause", "advice"),
    [
        ({"num_in_group": 3, "group_size": 4}, "3 consecutive layers", "`--offload-prefetch-step 2`"),
        ({}, "not started ahead", "never run on this rank"),
    ],
)
def test_copies_that_nothing_hides_are_explained(offload: dict[str, Any], cause: str, advice: str) -> None:
    """No compute lies between issue and wait: the sentence says why, and the stalls are its consequences."""
    said = offloaded(k=0, compute=even(10_000), **offload)
    found = finding(said, "synchronous_copy")
    assert found.level is Level.BAD
    assert found.numbers["share"] > 0.9
    assert cause in found.sentence
    assert advice in found.advice
    assert finding(said, "stalled").consequence_of


def test_copies_that_started_ahead_are_no_finding() -> None:
    """Neither if they hide, nor if only part of each does."""
    assert "synchronous_copy" not in kinds(offloaded())
    assert "synchronous_copy" not in kinds(offloaded(compute=even(200_000)))


@pytest.mark.parametrize("compute", [10_000, 150_000, 250_000, 310_000, 1_000_000])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("pinned", [True, False])
def test_sentences_about_offloaded_layers_use_no_words_of_sharing(compute: int, k: int, *, pinned: bool) -> None:
    """Whatever is found, layers are offloaded, and settings are vLLM's."""
    for found in offloaded(k=k, compute=even(compute), pinned=pinned).findings:
        for text in (found.sentence, found.advice, *found.evidence):
            assert not _OTHER_KINDS.search(text), (found.kind, text)
