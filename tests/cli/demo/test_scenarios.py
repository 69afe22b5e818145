"""The demo's dials: every scenario can be run, and what no run could be made of is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.cli.demo.scenarios import Dials, Scenario, Transport, Windows, preset
from swtrace.errors import SettingsError

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
    fitting = replace(dials, layers=2 * layers, share="1/2").fitting()
    fitting.check()
    assert fitting.prefetch_step == min(dials.prefetch_step, layers - 2)


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        (Dials(layers=60, share="1/60"), "--share='1/60': must be at least two of the layers 0-59, with --layers 60"),
        (Dials(layers=6, share="layers:1-6"), "--share='layers:1-6': must be at least two of the layers 0-5"),
        (Dials(layers=8, share="1/2", prefetch_step=3), "--prefetch-step='3': must be .* with --layers 8 --share 1/2"),
    ],
)
def test_a_part_that_makes_no_series_is_refused(dials: Dials, message: str) -> None:
    """Too few layers, layers that the stack lacks, and too few for the prefetch step: the dial is named."""
    with pytest.raises(SettingsError, match=message):
        dials.check()


def test_dials_travel_whole() -> None:
    """A rank runs exactly what the command was asked for."""
    dials = Dials(
        ranks=3,
        transport=Transport.PULL,
        windows=Windows.ROLLING,
        steps=5,
        jitter_ms=0.5,
        share="1/3",
        faults=("entry:rank=1", "kill"),
    )
    assert Dials.from_json(dials.to_json()) == dials
