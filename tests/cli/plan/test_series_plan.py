"""The settings of a plan are settings that a run reads."""

from __future__ import annotations

import pytest

from swtrace.cli.plan.series_plan import additional_config, settings, variables
from swtrace.ledger.planning.prediction import Prediction
from swtrace.settings import CONFIG_KEY, Settings
from tests.support.plans import HALF, NOTHING, REFUSED, WHOLE, plan, predicted


@pytest.mark.parametrize("prediction", [HALF, WHOLE, NOTHING])
def test_both_forms_of_the_settings_mean_the_same(prediction: Prediction) -> None:
    """The environment variables and the additional configuration give a run the same settings: those of the plan."""
    values = settings("self_attn.o_proj", prediction.candidate)
    by_environment = Settings.from_environment(variables(values))
    assert by_environment == Settings().overlay(additional_config(values)[CONFIG_KEY])
    assert by_environment.enabled
    assert by_environment.share == prediction.candidate.share


def test_the_plan_file_has_the_choice_and_its_conditions() -> None:
    """What is saved is the chosen prediction, in seconds, with what it holds for."""
    made = plan(NOTHING, HALF, WHOLE, REFUSED)
    saved = made.plan_file()
    assert saved is not None
    assert saved.settings["share"] == "1/2"
    assert saved.step_seconds.value == pytest.approx(0.0605)
    assert (saved.stall_ratio, saved.conditions) == (HALF.stall_ratio, made.conditions)


def test_a_choice_beside_the_front_is_shown() -> None:
    """If a narrow interval wins over a faster prediction, the table still has the choice."""
    made = plan(NOTHING, HALF, WHOLE)
    assert made.chosen == HALF
    assert made.shown == (NOTHING, HALF, WHOLE)
    assert plan(NOTHING, REFUSED).shown == ()


def test_no_sharing_is_shown_even_if_something_beats_it() -> None:
    """What saves memory at no cost leaves no sharing out of the front; the table still has it, to compare."""
    free = predicted("1/2", 24, 60.0, (0.0, 0.0, 0.0))
    made = plan(NOTHING, free)
    assert made.front == (free,)
    assert made.shown == (NOTHING, free)
