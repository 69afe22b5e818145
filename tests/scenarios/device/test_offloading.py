"""What ``make test-gpu`` asks of a GPU under vLLM's prefetch offloader, asked of the simulated device."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from tests.support.vllm.offloader_sources import VARIABLE, installed, offloader_sources
from tests.support.vllm.offloading import Compared, Shape, compare

pytestmark = pytest.mark.vllm


SHAPES = [Shape(2, 1, 1), Shape(3, 2, 2), Shape(2, 1, 3)]


def _compare(folder: Path, shape: Shape = SHAPES[0]) -> Compared:
    return compare(0, "simulated", str(folder), "", shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_records_hold_what_a_device_cannot_break(tmp_path: Path, shape: Shape) -> None:
    assert _compare(tmp_path, shape).broken() == []


def test_vllms_sources_alone_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU machine without vLLM, only its offloader's files are imported."""
    monkeypatch.setenv(VARIABLE, str(installed().parent))
    with ProcessPoolExecutor(1, get_context("spawn")) as without_vllm:  # the fork server of vLLM's tests has loaded it
        found = without_vllm.submit(compare, 0, "simulated", str(tmp_path), str(offloader_sources()), SHAPES[0])
        assert found.result().broken() == []


def test_a_folder_without_the_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(LookupError, match=r"has no vllm/model_executor/offloader/prefetch\.py"):
        offloader_sources()


def test_wrong_records_are_seen(tmp_path: Path) -> None:
    """A copy that is ready before it was issued, a step without a record, and bytes that nobody copied."""
    found = _compare(tmp_path)
    first, *others = found.watched.steps
    early = replace(others[0], ready_ns=others[0].issued_ns - 1)
    wrong = replace(found.watched, steps=(first, early, *others[1:]))
    assert any("issued before it is ready" in said for said in replace(found, watched=wrong).broken())
    wrong = replace(found.watched, steps=tuple(others), accounted_bytes=1)
    said = replace(found, watched=wrong).broken()
    assert any("steps [1, 2, 3, 4]" in each for each in said)
    assert any("1 bytes recorded" in each for each in said)
