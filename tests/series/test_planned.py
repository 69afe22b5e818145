"""A rank takes over a plan for its series and settings, and says what differs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.errors import SettingsError
from swtrace.plan_file import Conditions, Interval, PlanFile
from swtrace.series.planned import planned, read_plan
from swtrace.settings import Settings
from tests.support.schedules import BYTES, info

INFO = info(0, 2, 12, 1)
CONDITIONS = Conditions(ranks=2, stack_layers=12, layer_bytes=BYTES, model="tiny", phase="decode", tokens=8.0)
PLAN = PlanFile(
    series=INFO.name,
    start_layer=0,
    settings={"share": "all", "prefetch_step": 1, "transport": "broadcast", "windows": "static"},
    step_seconds=Interval(0.05, 0.04, 0.06),
    stall_ratio=Interval(0.01, 0.0, 0.02),
    conditions=CONDITIONS,
    made_at="2026-11-28T18:00:00+00:00",
)


def with_settings(**settings: object) -> PlanFile:
    """Return the plan with other settings."""
    return replace(PLAN, settings={**PLAN.settings, **settings})


def under(**conditions: Any) -> PlanFile:
    """Return the plan under other conditions."""
    return replace(PLAN, conditions=replace(CONDITIONS, **conditions))


def test_a_plan_for_these_settings_is_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    """The figures are the plan's, in nanoseconds; nothing differs, and nothing is logged."""
    said = planned(PLAN, INFO, "tiny")
    assert said is not None
    assert (said.digest, said.phase, said.tokens, said.differs) == (PLAN.digest, "decode", 8.0, "")
    assert (said.step_ns.low, said.stall_ratio) == (4e7, PLAN.stall_ratio)
    assert not caplog.records


@pytest.mark.parametrize(
    ("plan", "differs"),
    [
        (with_settings(share="1/2"), "share layers:0-11, not 1/2"),
        (with_settings(share="none"), "layers are shared, not observed"),
        (with_settings(prefetch_step=2, windows="rolling"), "prefetch step 1, not 2, windows static, not rolling"),
        (with_settings(transport="pull"), "transport broadcast, not pull"),
        (under(ranks=4), "ranks 2, not 4"),
        (under(stack_layers=24), "layers of the stack 12, not 24"),
        (under(layer_bytes=1), f"bytes of a layer {BYTES}, not 1"),
        (under(model="large"), "model tiny, not large"),
        (with_settings(transport="auto", windows="auto"), ""),
        (under(model=""), ""),
    ],
)
def test_what_differs_from_the_plan_is_named(plan: PlanFile, differs: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each setting and condition that is not as planned is named, in the result and in a warning."""
    said = planned(plan, INFO, "tiny")
    assert said is not None
    assert said.differs == differs
    assert bool(caplog.records) == bool(differs)
    assert differs in caplog.text


def test_a_plan_for_another_series_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """Another linear, or another pipeline stage, has no plan, which is no warning."""
    for other in (replace(PLAN, series="mlp.down_proj"), replace(PLAN, start_layer=12)):
        assert planned(other, INFO, "tiny") is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_scaled_compute_is_for_batches_of_an_unknown_size() -> None:
    """If the plan assumes that compute takes longer, the measured batches are not those that it is for."""
    said = planned(under(scale_compute=2.0), INFO, "tiny")
    assert said is not None
    assert said.tokens is None


def test_a_plan_that_cannot_be_used_is_one_warning_or_a_strict_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ranks run without a missing or damaged plan and warn once; with SWTRACE_STRICT=1 it is an error."""
    damaged = tmp_path / "damaged.json"
    with_settings(share="half").write(damaged)
    for path, reason in ((tmp_path / "missing.json", "No such file"), (damaged, "half")):
        for _ in range(2):
            assert read_plan(Settings(plan=path)) is None
        assert len(caplog.records) == 1
        assert "SWTRACE_PLAN" in caplog.text
        assert reason in caplog.text
        with pytest.raises(SettingsError, match=f"SWTRACE_PLAN: .*{reason}"):
            read_plan(Settings(plan=path, strict=True))
        caplog.clear()
