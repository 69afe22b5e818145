"""Pinned pictures of the views: a change of their look is visible in the diff.

``SWTRACE_PIN=1 pytest tests/tui/test_views.py`` draws them again; look at the SVGs before committing them.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from swtrace_tui.app import screenshot
from swtrace_tui.preferences import Configuration

from tests.support.scenes import Still, app_over, observation_of, settled, shown, until
from tests.support.simulated_rings import scenario

PINNED = Path(__file__).parent / "pictures"


@pytest.mark.parametrize(
    ("view", "name", "size", "theme"),
    [
        ("overview", "straggler", (110, 36), "swtrace-dark"),
        ("heatmap", "stalled", (80, 24), "swtrace-colour-blind"),
        ("timeline", "straggler", (110, 28), "swtrace-light"),
        ("windows", "hidden", (80, 24), "swtrace-dark"),
        ("verdict", "stalled", (80, 24), "swtrace-mono"),
    ],
)
def test_views_look_as_pinned(
    view: str, name: str, size: tuple[int, int], theme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same facts, each view draws the same cells in the same colours."""
    monkeypatch.setattr("swtrace_tui.bars.__version__", "1.2.3")
    svg = asyncio.run(_drawn(view, name, size, theme))

    pinned = PINNED / f"{view}.svg"
    if os.environ.get("SWTRACE_PIN"):
        pinned.parent.mkdir(exist_ok=True)
        pinned.write_text(svg, encoding="utf-8")
    elif svg != pinned.read_text(encoding="utf-8"):
        actual = tmp_path / f"{view}.svg"
        actual.write_text(svg, encoding="utf-8")
        before, after = _words(pinned.read_text(encoding="utf-8")), _words(svg)
        changed = [f"- {one}\n+ {other}" for one, other in zip(before, after, strict=False) if one != other][:8]
        pytest.fail(f"{view} differs from {pinned}; drawn now: {actual}\n" + ("\n".join(changed) or "colours only"))


async def _drawn(view: str, name: str, size: tuple[int, int], theme: str) -> str:
    app = app_over(
        Still(observation_of(scenario(name, layers=20))), view=view, configuration=Configuration(theme=theme)
    )
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.picture and app._verdicts)
        await settled(pilot)
        await until(pilot, lambda: "Quit" in shown(app).splitlines()[-1] or size[0] <= 80)
        await settled(pilot)
        return screenshot(app, view)


def _words(svg: str) -> list[str]:
    return [text.replace("&#160;", " ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
