"""The file in which a plan is handed to the ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.errors import SettingsError
from swtrace.plan_file import Conditions, Interval, PlanFile

PLAN = PlanFile(
    series="self_attn.o_proj",
    start_layer=0,
    settings={"share": "1/2", "prefetch_step": 2, "transport": "pull"},
    step_seconds=Interval(0.1, 0.09, 0.12),
    stall_ratio=Interval(0.01, 0.0, 0.02),
    conditions=Conditions(ranks=4, stack_layers=61, layer_bytes=1 << 20, model="a/model", phase="decode", tokens=8.5),
    made_at="2026-11-28T18:00:00+00:00",
)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A written plan is read back equal, with the same digest."""
    PLAN.write(tmp_path / "plan.json")
    read = PlanFile.read(tmp_path / "plan.json")
    assert read == PLAN
    assert read.digest == PLAN.digest


def test_the_digest_tells_plans_apart() -> None:
    """Plans with another setting or another prediction have another digest."""
    others = (replace(PLAN, settings={"share": "1/4"}), replace(PLAN, stall_ratio=Interval(0.01, 0.0, 0.03)))
    assert len({plan.digest for plan in (PLAN, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"series": ""},
        {"series": "\x1b[2J"},
        {"start_layer": True},
        {"settings": []},
        {"step_seconds": {"value": 0.1, "low": 0.2, "high": 0.3}},
        {"stall_ratio": {"value": float("nan"), "low": 0, "high": 1}},
        {"conditions": {"ranks": 4}},
        {"surplus": 1},
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A file with a wrong, missing or unknown field is refused with an error that names it and the remedy."""
    file = tmp_path / "plan.json"
    PLAN.write(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(SettingsError, match=rf"{file} is not a plan: .*swtrace plan --save"):
        PlanFile.read(file)


@pytest.mark.parametrize("content", [b"", b"[]", b'"x"', b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file of another kind is refused, however it is made."""
    file = tmp_path / "other"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="is not a plan"):
        PlanFile.read(file)


def test_a_missing_plan_is_an_error_of_the_setting(tmp_path: Path) -> None:
    """A path without a file is a settings error that gives the reason."""
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        PlanFile.read(tmp_path / "none.json")
