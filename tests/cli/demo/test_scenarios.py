"""The demo's dials: every scenario can be run, and what no run could be made of is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.cli.demo.scenarios import PRESETS, Dials, Scenario, Windows
from swtrace.errors import SettingsError


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_preset_can_be_run(scenario: Scenario) -> None:
    """No scenario sets a dial out of range."""
    PRESETS[scenario].check()


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        (Dials(ranks=1), "--ranks must be 2 to 64"),
        (Dials(layers=1), "--layers must be 2 to 4096"),
        (Dials(prefetch_step=59), "--prefetch-step must be 0 to 58 with --layers 60"),
        (Dials(mib=0), "--mib must be 0.00195312 to 4096"),
        (Dials(compute_ms=-1), "--compute-ms must be 0 to 60000"),
        (Dials(steps=0), "--steps must be at least 1"),
        (Dials(seconds=float("nan")), "--duration must be at least 0"),
        (Dials(seed=-5), "--seed must be 0 to 2147483647"),
    ],
)
def test_an_impossible_dial_is_refused(dials: Dials, said: str) -> None:
    """What no run could be made of is told before a process is started, with the range in plain digits."""
    with pytest.raises(SettingsError) as caught:
        dials.check()
    assert str(caught.value) == said


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
