"""The timeline zooms, holds a step, and follows the newest one again."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from swtrace_tui.palette import COLOUR_BLIND, DARK, LIGHT, SPAN_NAMES, Palette, Span
from swtrace_tui.views.timeline import Timeline

from tests.support.scenes import Still, app_over, drawn, observation_of, press, run, shown, until
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_sentences_use_the_lines_that_lanes_leave() -> None:
    """In a narrow terminal with free lines, the critical path is not cut."""
    text = " ".join(" ".join(drawn(Timeline(), 50, 24)).split())
    assert re.search(r"Critical path, ending on rank \d: .*; total [^…]*\.$", text)


def test_timeline_zooms_holds_the_step_and_follows_again() -> None:
    """Zooming holds the step that is shown; ``f`` follows the newest one and shows all of it."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "3")
            assert "(following)" in shown(app)
            before = app.screen.query_one(Timeline)._range()
            await press(pilot, "plus")
            begin, end = app.screen.query_one(Timeline)._range()
            assert end - begin == pytest.approx((before[1] - before[0]) / 2)
            assert "held" in shown(app)
            await press(pilot, "left_square_bracket")
            assert "Step 22" in shown(app)
            await press(pilot, "f")
            assert "(following)" in shown(app)
            assert "Step 23" in shown(app)

    run(test())


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_legend_of_the_timeline_is_never_cut(width: int) -> None:
    """At any width the legend names every kind of stretch."""
    text = " ".join(" ".join(drawn(Timeline(), width, 40)[:4]).split())
    for name in SPAN_NAMES.values():
        assert name in text


@pytest.mark.parametrize(("layers", "width"), [(20, 120), (61, 120), (61, 220), (128, 160)])
def test_layer_numbers_in_the_timeline_are_regular(layers: int, width: int) -> None:
    """Above each rank's lanes, every n-th layer is numbered, with n the same along the line."""
    lines = [line for line in drawn(Timeline(), width, 60, layers=layers) if line.lstrip().startswith("layer ")]
    assert len(lines) == 4
    for line in lines:
        numbers = [int(number) for number in re.findall(r"╷(\d+)", line)]
        steps = {after - before for before, after in pairwise(numbers)}
        assert len(numbers) >= 4
        assert len(steps) == 1, line
        assert numbers[-1] + steps.pop() >= layers - 1


def test_two_ranks_use_most_of_a_high_screen() -> None:
    """Lanes grow with the room, so that few ranks do not huddle at the top."""
    lines = drawn(Timeline(), 120, 50, ranks=2)
    lanes = [line for line in lines[3:] if re.search("[█░▓─]{2}", line)]
    assert len(lanes) >= 0.7 * 50


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_the_time_after_a_stall_does_not_look_like_a_transfer(palette: Palette) -> None:
    """Wake differs clearly from an exposed transfer and from every other kind of stretch."""

    def rgb(kind: Span) -> tuple[int, ...]:
        return tuple(int(palette.spans[kind][at : at + 2], 16) for at in (1, 3, 5))

    for kind in set(Span) - {Span.WAKE}:
        distance = sum((one - other) ** 2 for one, other in zip(rgb(Span.WAKE), rgb(kind), strict=True)) ** 0.5
        assert distance > 80, kind
