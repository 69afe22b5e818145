"""The colours and glyphs of the views. A palette is one Textual theme.

Every meaning has a glyph too, so that nothing is lost without colour (``NO_COLOR``, the ``mono`` palette) or to a
user who cannot distinguish red from green. Styles and segments are built once and shared by all cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.theme import Theme

LEVELS = 16
"""Levels of a heat ramp; 0 is below the scale."""
RAMP_GLYPHS = " .,:;~+=xX%#&@██"
"""The ramp without colour: the more ink, the higher the value."""
BLOCKS = " ▁▂▃▄▅▆▇█"
DARK_BELOW = 140.0
"""Luminance below which a colour is dark: marks and text on it are light."""


class Span(IntEnum):
    """The kind of a stretch of a timeline lane."""

    OUTSIDE = 0
    """Before the rank entered the step, or after it left."""
    COMPUTE = 1
    STALL = 2
    WAKE = 3
    HIDDEN = 4
    """Bytes moved while the receiver computed."""
    EXPOSED = 5
    """Bytes moved while the receiver waited for them."""
    QUEUED = 6
    """Issued and not moving: a peer had not issued, or the channel was busy."""
    SENT = 7
    """Bytes of this rank's own layer moved to the others."""


SPAN_GLYPHS = {
    Span.OUTSIDE: " ",
    Span.COMPUTE: "─",
    Span.STALL: "█",
    Span.WAKE: "▒",
    Span.HIDDEN: "░",
    Span.EXPOSED: "▓",
    Span.QUEUED: "·",
    Span.SENT: "-",
}
SPAN_NAMES = {
    Span.COMPUTE: "compute",
    Span.STALL: "stall",
    Span.WAKE: "wake",
    Span.HIDDEN: "transfer, hidden",
    Span.EXPOSED: "transfer, exposed",
    Span.QUEUED: "queued",
    Span.SENT: "sent",
}
"""In the order of the legend."""

WINDOW_STATES = ("free", "inflight", "ready", "in_use")
WINDOW_GLYPHS = {"free": "·", "inflight": "▒", "ready": "▓", "in_use": "█"}
WINDOW_NAMES = {"free": "free", "inflight": "in flight", "ready": "ready", "in_use": "in use"}
WINDOW_ABOUT = {
    "free": "holds nothing",
    "inflight": "issued, not ready",
    "ready": "arrived, not yet waited for",
    "in_use": "waited for, not yet issued again",
}


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours of one theme, all as ``#rrggbb``."""

    name: str
    background: str
    surface: str
    text: str
    dim: str
    faint: str
    selected: str
    """The ground of a selected row."""
    good: str
    note: str
    warning: str
    bad: str
    spans: tuple[str, ...]
    """By :class:`Span`."""
    windows: tuple[str, str, str, str]
    """By :data:`WINDOW_STATES`."""
    causes: tuple[str, ...]
    """By :data:`~swtrace.ledger.facts.CAUSES`."""
    ramps: dict[str, tuple[str, ...]]
    """Anchors of each metric's heat ramp, from low to high."""
    cursor: tuple[str, str] = ("#c4c5b5", "#1a1a1a")
    """The mark of the selected cell, on dark and on light cells."""
    mono: bool = False
    """Whether glyphs replace colours."""

    def style(self, colour: str, *, bold: bool = False, on: str | None = None) -> Style:
        """Return a style on the theme's background, or on another one."""
        return _style(colour, on or self.background, bold)

    def readable(self, on: str) -> Style:
        """Return the style of text on a stretch of a lane."""
        dark, light = sorted((self.text, self.background), key=lambda each: luminance(_colour(each)))
        return self.style(dark if luminance(_colour(on)) >= DARK_BELOW else light, on=on)

    def window(self, state: str) -> str:
        """Return the colour of a window in one of :data:`WINDOW_STATES`."""
        return self.windows[WINDOW_STATES.index(state)]

    @cached_property
    def levels(self) -> tuple[Style, ...]:
        """Styles by :class:`~swtrace.diagnosis.finding.Level`."""
        return tuple(self.style(colour, bold=True) for colour in (self.good, self.note, self.warning, self.bad))

    def ramp(self, metric: str) -> tuple[str, ...]:
        """Return the colours of a metric's ramp, lowest first."""
        return _ramp(self.ramps.get(metric, self.ramps["transfer"]))

    def heat_segments(self, metric: str, width: int) -> tuple[Segment, ...]:
        """Return one prebuilt cell per level, ``width`` columns wide."""
        return tuple(
            Segment(
                (RAMP_GLYPHS[level] if self.mono else " ") * width,
                Style(color=_colour(self.text), bgcolor=_colour(self.background if self.mono else colour)),
            )
            for level, colour in enumerate(self.ramp(metric))
        )

    def heat_pairs(self, metric: str, width: int) -> tuple[tuple[Segment, ...], ...]:
        """Return prebuilt cells of two ranks, one above the other: ``[upper][lower]``."""
        colours = (*self.ramp(metric), self.surface)
        return tuple(
            tuple(Segment("▀" * width, Style(color=_colour(upper), bgcolor=_colour(lower))) for lower in colours)
            for upper in colours
        )

    @cached_property
    def lane_segments(self) -> tuple[tuple[Segment, ...], ...]:
        """Prebuilt cells of a lane, two stretches side by side: ``[left][right]``."""
        return tuple(tuple(self._lane(left, right) for right in Span) for left in Span)

    @cached_property
    def stacked_segments(self) -> tuple[tuple[Segment, ...], ...]:
        """Prebuilt cells of two lanes, one above the other: ``[upper][lower]``."""
        return tuple(tuple(self._stacked(upper, lower) for lower in Span) for upper in Span)

    def _lane(self, left: Span, right: Span) -> Segment:
        if self.mono:
            return Segment(SPAN_GLYPHS[max(left, right, key=_ink)], self.style(self.text))
        if left == right:
            return Segment(" ", Style(bgcolor=_colour(self.spans[left])))
        return Segment("▌", Style(color=_colour(self.spans[left]), bgcolor=_colour(self.spans[right])))

    def _stacked(self, upper: Span, lower: Span) -> Segment:
        if self.mono:
            return Segment(SPAN_GLYPHS[max(upper, lower, key=_ink)], self.style(self.text))
        return Segment("▀", Style(color=_colour(self.spans[upper]), bgcolor=_colour(self.spans[lower])))


_INK = (*(Span.OUTSIDE, Span.COMPUTE, Span.SENT, Span.QUEUED, Span.HIDDEN, Span.WAKE, Span.EXPOSED, Span.STALL),)


def _ink(span: Span) -> int:
    return _INK.index(span)


def luminance(colour: Color) -> float:
    """Return how light a colour is, 0 to 255."""
    red, green, blue = colour.get_truecolor()
    return 0.299 * red + 0.587 * green + 0.114 * blue


@cache
def _colour(text: str) -> Color:
    return Color.parse(text)


@cache
def _style(colour: str, background: str, bold: bool) -> Style:  # noqa: FBT001 - a key of a cache
    return Style(color=_colour(colour), bgcolor=_colour(background), bold=bold or None)


@cache
def _ramp(anchors: tuple[str, ...]) -> tuple[str, ...]:
    rgb = [tuple(int(anchor[i : i + 2], 16) for i in (1, 3, 5)) for anchor in anchors]
    colours = []
    for level in range(LEVELS):
        at = level / (LEVELS - 1) * (len(rgb) - 1)
        low = min(int(at), len(rgb) - 2)
        share = at - low
        mixed = [round(a + (b - a) * share) for a, b in zip(rgb[low], rgb[low + 1], strict=True)]
        colours.append("#{:02x}{:02x}{:02x}".format(*mixed))
    return tuple(colours)


DARK = Palette(
    name="dark",
    background="#0d1117",
    surface="#161c25",
    text="#d9e0e8",
    dim="#8f9bab",
    faint="#3a4553",
    selected="#25303f",
    good="#4cc38a",
    note="#6cb6ff",
    warning="#f2b44b",
    bad="#ff6b6b",
    spans=("#0d1117", "#2c4a70", "#ff5c5c", "#c8d3de", "#2aa58b", "#ff9d4d", "#574a7d", "#39424f"),
    windows=("#8f9bab", "#f2b44b", "#4cc38a", "#6cb6ff"),
    causes=("#b18cff", "#d96ad6", "#f2b44b", "#ff7a59", "#66717f"),
    ramps={
        "stall": ("#161c25", "#4b2140", "#9c2f4b", "#e8553f", "#fca636", "#fcf7b0"),
        "slack": ("#161c25", "#12384a", "#0f6675", "#22988a", "#6fcf8a", "#e3f7b5"),
        "transfer": ("#161c25", "#1c3260", "#28559b", "#3f86c9", "#83bfe8", "#e6f4ff"),
        "skew": ("#161c25", "#33235f", "#63379b", "#a054c4", "#d98ada", "#fbe1f4"),
    },
)
LIGHT = Palette(
    name="light",
    background="#fbfaf7",
    surface="#efece5",
    text="#1f2733",
    dim="#5c6571",
    faint="#c9c5bb",
    selected="#dfe6f0",
    good="#186f45",
    note="#1f63b5",
    warning="#8f5400",
    bad="#bd232b",
    spans=("#fbfaf7", "#b9cbe4", "#d7263d", "#4a5463", "#4fb39b", "#f0833a", "#b9a7d9", "#d9d5cb"),
    windows=("#5c6571", "#8f5400", "#186f45", "#1f63b5"),
    causes=("#7a4fd0", "#b03fae", "#c97a00", "#cf4520", "#8a919b"),
    ramps={
        "stall": ("#efece5", "#fbd5a5", "#f79d5c", "#e4573d", "#a8223e", "#4d0f33"),
        "slack": ("#efece5", "#cfe9c0", "#8fcf9f", "#3fa58b", "#137275", "#0a3b4d"),
        "transfer": ("#efece5", "#cfe2f5", "#92c0e6", "#4c8fca", "#255a9e", "#142c5c"),
        "skew": ("#efece5", "#efd3ec", "#d99ad8", "#aa5cc0", "#6d3598", "#321a5c"),
    },
    cursor=("#f7f7f7", "#000000"),
)
# Okabe and Ito's colours, and ramps that only get lighter (cividis), so that lightness alone distinguishes them.
_CIVIDIS = ("#10182b", "#123570", "#575d6d", "#948e76", "#d3c163", "#fee838")
COLOUR_BLIND = Palette(
    name="colour-blind",
    background="#0c1018",
    surface="#10182b",
    text="#e6e6e6",
    dim="#939aa6",
    faint="#3b4454",
    selected="#263044",
    good="#56b4e9",
    note="#a9b8c9",
    warning="#e69f00",
    bad="#f0e442",
    spans=("#0c1018", "#31405c", "#f0e442", "#d8dee6", "#0072b2", "#e69f00", "#6a5a6b", "#3b4454"),
    windows=("#939aa6", "#e69f00", "#56b4e9", "#f0e442"),
    causes=("#cc79a7", "#009e73", "#56b4e9", "#e69f00", "#7a828e"),
    ramps=dict.fromkeys(("stall", "slack", "transfer", "skew"), _CIVIDIS),
)
MONO = Palette(
    name="mono",
    background="#000000",
    surface="#000000",
    text="#e0e0e0",
    dim="#a8a8a8",
    faint="#6a6a6a",
    selected="#3a3a3a",
    good="#e0e0e0",
    note="#e0e0e0",
    warning="#ffffff",
    bad="#ffffff",
    spans=("#000000",) * len(Span),
    windows=("#a8a8a8", "#e0e0e0", "#e0e0e0", "#e0e0e0"),
    causes=("#e0e0e0",) * 5,
    ramps=dict.fromkeys(("stall", "slack", "transfer", "skew"), ("#000000", "#000000")),
    mono=True,
)
_PALETTES = {f"swtrace-{palette.name}": palette for palette in (DARK, LIGHT, COLOUR_BLIND, MONO)}
THEMES = tuple(_PALETTES)
"""Our themes by name, one per palette."""


def themes() -> tuple[Theme, ...]:
    """Return the themes to register."""
    return tuple(_theme(name, palette) for name, palette in _PALETTES.items())


def palette_of(theme: Theme) -> Palette:
    """Return the palette of a theme: the dark or the light one for Textual's own themes."""
    return _PALETTES.get(theme.name, DARK if theme.dark else LIGHT)


def _theme(name: str, palette: Palette) -> Theme:
    return Theme(
        name=name,
        primary=palette.note,
        secondary=palette.dim,
        accent=palette.note,
        success=palette.good,
        warning=palette.warning,
        error=palette.bad,
        foreground=palette.text,
        background=palette.background,
        surface=palette.background,
        panel=palette.surface,
        boost=palette.surface,
        dark=palette is not LIGHT,
        variables={
            "footer-background": palette.surface,
            "footer-key-foreground": palette.note,
            "footer-description-foreground": palette.dim,
            "block-cursor-background": palette.note,
            "block-cursor-foreground": palette.background,
            "scrollbar": palette.faint,
            "scrollbar-background": palette.background,
        },
    )
