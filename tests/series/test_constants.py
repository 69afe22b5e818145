"""Constants that cannot form a series are refused when it is made, with the setting to change."""

from __future__ import annotations

import pytest

from swtrace.errors import RegistrationError, SettingsError
from swtrace.series import RankGroup, Series
from swtrace.trace.schema import MAX_GROUP, MAX_POSITIONS

PAIR = RankGroup((4, 6), 1)
WHERE = "series 's', rank 6"


def test_a_group_of_one_rank_has_nothing_to_share() -> None:
    """World size 1 is refused at construction, as are dense replicas, which are groups of one."""
    with pytest.raises(RegistrationError, match=r"series 's', rank 0: a group of 1 rank has nothing to share"):
        Series("s", RankGroup((0,), 0), 0, 4)


@pytest.mark.parametrize("prefetch_step", [-1, 3, 4])
def test_the_prefetch_step_is_bounded(prefetch_step: int) -> None:
    """The prefetch step must be within 0 and L - 2; the message names the setting."""
    with pytest.raises(RegistrationError, match=rf"{WHERE}: prefetch step {prefetch_step}: .* SWTRACE_PREFETCH_STEP"):
        Series("s", PAIR, 0, 4, prefetch_step=prefetch_step)


@pytest.mark.parametrize(
    ("layers", "prefetch_step", "message"),
    [
        ((4,), 0, r"1 of the layers \[3, 8\) would be shared, but a series needs at least two; set SWTRACE_SHARE"),
        ((), 0, r"0 of the layers \[3, 8\) would be shared"),
        ((4, 5, 7), 2, r"prefetch step 2: must be between 0 and 1 .*SWTRACE_PREFETCH_STEP or set SWTRACE_SHARE"),
        ((5, 4), 0, r"shared layers 5, 4: must be in ascending order and within \[3, 8\)"),
        ((4, 4, 5), 0, r"shared layers 4, 4, 5: must be"),
        ((4, 8), 0, r"shared layers 4, 8: must be"),
    ],
)
def test_layers_that_cannot_form_a_series_are_refused(
    layers: tuple[int, ...], prefetch_step: int, message: str
) -> None:
    """Too few layers, too few for the prefetch step, twice, out of order or outside the stack: refused at once."""
    with pytest.raises(RegistrationError, match=rf"{WHERE}: {message}"):
        Series("s", PAIR, 3, 8, layers=layers, prefetch_step=prefetch_step)


def test_one_layer_is_no_series() -> None:
    """A series has at least two layers."""
    with pytest.raises(RegistrationError, match=r"layers \[3, 4\) are not a series"):
        Series("s", PAIR, 3, 4, prefetch_step=0)


@pytest.mark.parametrize(("ranks", "layers"), [(MAX_GROUP + 1, 4), (2, MAX_POSITIONS + 1)])
def test_a_series_is_no_larger_than_its_records_can_say(ranks: int, layers: int) -> None:
    """The limits of the record format are in the error."""
    said = rf"{ranks} ranks and {layers} layers exceed the limits of {MAX_GROUP} ranks and {MAX_POSITIONS} layers"
    with pytest.raises(RegistrationError, match=said):
        Series("s", RankGroup(tuple(range(ranks)), 0), 0, layers)


def test_an_unknown_policy_is_a_wrong_setting() -> None:
    """The error names the unknown window policy, and those that exist."""
    with pytest.raises(SettingsError, match=r"'both': must be one of: auto, rolling, static"):
        Series("s", PAIR, 0, 4, windows="both")


def test_every_rank_has_a_number() -> None:
    """A group of two with one number is refused."""
    with pytest.raises(RegistrationError, match="run_ranks has length 1, but the group's size is 2"):
        Series("s", RankGroup((0, 1), 0), 0, 4, run_ranks=(7,))
