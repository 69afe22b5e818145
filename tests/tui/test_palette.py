"""Every palette shows the same, by colours or by glyphs."""

from __future__ import annotations

import numpy as np
import pytest
from swtrace_tui.palette import COLOUR_BLIND, DARK, LEVELS, LIGHT, MONO, THEMES, Palette, Span

from tests.support.scenes import (
    Still,
    app_over,
    observation_of,
    press,
    run,
    shown,
    until,
)
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_themes_change_every_colour_and_lose_nothing() -> None:
    """All our themes show the same text, except for the glyphs of the one without colour."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: "k=1 leaves" in shown(app))
            assert app.theme == THEMES[0]
            before = shown(app).splitlines()[2:12]
            for name in (*THEMES[1:], THEMES[0]):
                await press(pilot, "t")
                assert app.theme == name
                assert shown(app).splitlines()[2:6] == before[:4]

    run(test())


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_ramps_go_one_way_in_lightness(palette: object) -> None:
    """Within a ramp, higher values are always lighter (or always darker), so that hue is not needed to read it."""
    chosen = next(each for each in (DARK, LIGHT, COLOUR_BLIND) if each is palette)
    for metric in chosen.ramps:
        light = [
            0.299 * int(colour[1:3], 16) + 0.587 * int(colour[3:5], 16) + 0.114 * int(colour[5:7], 16)
            for colour in chosen.ramp(metric)
        ]
        steps = np.diff(light)
        assert (steps > 0).all() or (steps < 0).all(), metric


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_text_has_enough_contrast(palette: Palette) -> None:
    """Every colour of text has a contrast of 4.5 or more, as WCAG asks for, on every ground that it is drawn on."""

    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    words = (palette.text, palette.dim, palette.good, palette.note, palette.warning, palette.bad, *palette.windows)
    for on in (palette.background, palette.surface, palette.selected):
        for colour in words:
            dark, bright = sorted((light(colour), light(on)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (colour, on)


def test_without_colour_every_kind_has_its_own_glyph() -> None:
    """The palette without colour has a different glyph for each kind of stretch and each level of heat."""
    lanes = {MONO.lane_segments[kind][kind].text for kind in Span}
    heat = [segment.text for segment in MONO.heat_segments("stall", 1)]

    assert len(lanes) == len(Span)
    assert len(set(heat)) >= LEVELS - 1
