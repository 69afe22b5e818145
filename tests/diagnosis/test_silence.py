"""How long a stretch without progress must be depends on what the last steps show."""

from __future__ import annotations

import pytest

from swtrace.diagnosis.silence import (
    FACTOR,
    SHORTEST_NS,
    UNWAITED_NS,
    WARM_UP_NS,
    WARM_UP_STEPS,
    longest_stretch_ns,
    silence_ns,
)
from swtrace.ledger.facts import StepFacts
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate

MS = 1_000_000


def steps(*, count: int = 24, layer_ns: int = MS, slow_step: int = -1, late_ns: int = 0) -> tuple[StepFacts, ...]:
    """Return the steps of two ranks; in one, layers take 100 times as long, and in all, rank 1 enters later."""
    schedule = simulate(
        ranks=2,
        layers=4,
        k=1,
        steps=count,
        compute=lambda _rank, step, _position: layer_ns * (100 if step == slow_step else 1),
        gap=lambda rank, _step: late_ns * rank,
    )
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


@pytest.mark.parametrize(
    ("layer_ns", "waited", "expected"), [(MS, True, SHORTEST_NS), (MS, False, UNWAITED_NS), (2000 * MS, True, None)]
)
def test_short_steps_need_a_second_and_long_ones_a_multiple(
    layer_ns: int, expected: int | None, *, waited: bool
) -> None:
    """Steps of milliseconds are judged after a second if a rank waits. Long steps need a multiple of their layers."""
    found = silence_ns(steps(layer_ns=layer_ns), waited=waited)
    if expected is None:
        assert FACTOR * layer_ns <= found <= 3 * FACTOR * layer_ns
    else:
        assert found == expected


def test_no_short_silence_counts_before_the_warm_up_is_over() -> None:
    """Nothing is judged from the first steps, nor from one that was slow among them."""
    assert silence_ns(()) == silence_ns(steps(count=WARM_UP_STEPS)) == WARM_UP_NS
    assert silence_ns(steps(slow_step=WARM_UP_STEPS - 1, layer_ns=10 * MS)) == SHORTEST_NS
    assert silence_ns(steps(slow_step=WARM_UP_STEPS, layer_ns=10 * MS)) > SHORTEST_NS


def test_a_late_entry_is_a_stretch_without_progress() -> None:
    """Ranks that always enter steps late are no more likely to hang when they do."""
    assert longest_stretch_ns(steps(late_ns=700 * MS)[-1]) >= 700 * MS


def test_a_devices_progress_is_a_whole_step() -> None:
    """Where progress is only seen at the end of a step, the whole step counts."""
    known = steps(layer_ns=400 * MS)
    assert silence_ns(known, whole_steps=True) >= FACTOR * 4 * 400 * MS > silence_ns(known)
