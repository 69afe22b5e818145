"""Screenshots as SVG that need nothing else: text stays text, and no font is fetched from anywhere."""

from __future__ import annotations

import re
from typing import Any

from textual.app import App

_FONT_FACE = re.compile(r"\s*@font-face\s*\{[^}]*\}")
_FAMILY = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def screenshot(app: App[Any], title: str) -> str:
    """Return what is on the screen as a self-contained SVG."""
    svg = _FONT_FACE.sub("", app.export_screenshot(title=title))
    svg = svg.replace("Fira Code, monospace", _FAMILY).replace("font-family: Fira Code", f"font-family: {_FAMILY}")
    # Names of classes and clips carry a hash of the content; without it, the same picture is the same file.
    return re.sub(r"terminal-\d+", "terminal", svg) + "\n"
