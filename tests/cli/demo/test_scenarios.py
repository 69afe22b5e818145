"""The demo's dials: every scenario can be run, and what no run could be made of is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.cli.demo.scenarios import Dials, Scenario, Transport, Windows, preset

every_preset = pytest.mark.parametrize(
    "dials", [preset(scenario, transport) for scenario in Scenario for transport in Transport]
)


@every_preset
def test_every_preset_can_be_run(dials: Dials) -> None:
    """No scenario sets a dial out of range, whatever the transport."""
    dials.check()


@every_preset
@pytest.mark.parametrize("layers", [2, 3, 4, 60])
def test_a_scenario_fits_any_number_of_layers(dials: Dials, layers: int) -> None:
    """A scenario's own prefetch step, which the user never gave, is never what is wrong."""
    fitting = replace(dials, layers=layers).fitting()
    fitting.check()
    assert fitting.prefetch_step == min(dials.prefetch_step, layers - 2)


def test_dials_travel_whole() -> None:
    """A rank runs exactly what the command was asked for."""
    dials = Dials(ranks=3, transport=Transport.PULL, windows=Windows.ROLLING, steps=5, jitter_ms=0.5)
    assert Dials.from_json(dials.to_json()) == dials
