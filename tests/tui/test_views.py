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

from tests.support.scenes import (
    Still,
    app_over,
    observation_across,
    observation_of,
    on_two_hosts,
    settled,
    shown,
    until,
)
from tests.support.simulated_rings import scenario

PINNED = Path(__file__).parent / "pictures"


@pytest.mark.parametrize(
    ("view", "hosts", "name", "size", "theme"),
    [
        ("overview", 1, "straggler", (110, 36), "swtrace-dark"),
        ("heatmap", 1, "stalled", (80, 24), "swtrace-colour-blind"),
        ("timeline", 1, "straggler", (110, 28), "swtrace-light"),
        ("timeline", 2, "straggler", (110, 28), "swtrace-dark"),
        ("windows", 1, "hidden", (80, 24), "swtrace-dark"),
        ("diagnosis", 1, "stalled", (80, 24), "swtrace-mono"),
    ],
)
def test_views_look_as_pinned(
    view: str, hosts: int, name: str, size: tuple[int, int], theme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same facts, each view draws the same cells in the same colours."""
    monkeypatch.setattr("swtrace_tui.bars.__version__", "1.2.3")
    svg = asyncio.run(_drawn(view, hosts, name, size, theme))

    pinned = PINNED / (f"{view}.svg" if hosts == 1 else f"{view}-hosts.svg")
    if os.environ.get("SWTRACE_PIN"):
        pinned.parent.mkdir(exist_ok=True)
        pinned.write_text(svg, encoding="utf-8")
    elif svg != pinned.read_text(encoding="utf-8"):
        actual = tmp_path / f"{view}.svg"
        actual.write_text(svg, encoding="utf-8")
        before, after = _words(pinned.read_text(encoding="utf-8")), _words(svg)
        changed = [f"- {one}\n+ {other}" for one, other in zip(before, after, strict=False) if one != other][:8]
        pytest.fail(f"{view} differs from {pinned}; drawn now: {actual}\n" + ("\n".join(changed) or "colours only"))


async def _drawn(view: str, hosts: int, name: str, size: tuple[int, int], theme: str) -> str:
    made = scenario(name, layers=20)
    seen = observation_of(made) if hosts == 1 else observation_across(on_two_hosts(made))
    app = app_over(Still(seen), view=view, configuration=Configuration(theme=theme))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.picture and app._diagnosis)
        await settled(pilot)
        await until(pilot, lambda: "Quit" in shown(app).splitlines()[-1] or size[0] <= 80)
        await settled(pilot)
        return screenshot(app, view)


def _words(svg: str) -> list[str]:
    return [text.replace("&#160;", " ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
