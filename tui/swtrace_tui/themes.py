"""Textual themes, one per palette, and which palette goes with any other theme."""

from __future__ import annotations

from textual.theme import Theme

from swtrace_tui.palette import COLOUR_BLIND, DARK, LIGHT, MONO, Palette

NAMES = ("swtrace-dark", "swtrace-light", "swtrace-colour-blind", "swtrace-mono")
_PALETTES = dict(zip(NAMES, (DARK, LIGHT, COLOUR_BLIND, MONO), strict=True))


def themes() -> tuple[Theme, ...]:
    """Return the themes to register."""
    return tuple(_theme(name, palette) for name, palette in _PALETTES.items())


def palette_of(theme: Theme) -> Palette:
    """Return the palette of a theme; Textual's own themes take the dark or the light one."""
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
