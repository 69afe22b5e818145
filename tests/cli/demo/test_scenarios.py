"""The demo's dials: every scenario can be run, and what no run could be made of is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.cli.demo.scenarios import PRESETS, Dials, Scenario, Windows


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_preset_can_be_run(scenario: Scenario) -> None:
    """No scenario sets a dial out of range."""
    PRESETS[scenario].check()


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("layers", [2, 3, 4, 60])
def test_a_scenario_fits_any_number_of_layers(scenario: Scenario, layers: int) -> None:
    """A scenario's own prefetch step, which the user never gave, is never what is wrong."""
    dials = replace(PRESETS[scenario], layers=layers).fitting()
    dials.check()
    assert dials.prefetch_step == min(PRESETS[scenario].prefetch_step, layers - 2)


def test_dials_travel_whole() -> None:
    """A rank runs exactly what the command was asked for."""
    dials = Dials(ranks=3, windows=Windows.ROLLING, steps=5, jitter_ms=0.5)
    assert Dials.from_json(dials.to_json()) == dials
