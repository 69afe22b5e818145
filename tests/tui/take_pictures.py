"""Take screenshots of every view over a folder of rings, for the documentation.

Run it over the rings of a real demo (the longer runs are in ``docs/images``)::

    SWTRACE_DIR=/dev/shm/look swtrace demo --scenario straggler --ranks 4
    python tests/tui/take_pictures.py /dev/shm/look docs/images --prefix top-straggler --size 120x36
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from swtrace_tui.actions import VIEWS
from swtrace_tui.app import TopApp, screenshot
from swtrace_tui.preferences import Configuration

from swtrace.observing import watch_rings


async def take(directory: Path, target: Path, prefix: str, size: tuple[int, int], views: list[str], theme: str) -> None:
    """Open each view, wait for its diagnosis, and save it."""
    app = TopApp(lambda: watch_rings(directory), configuration=Configuration(theme=theme))
    async with app.run_test(size=size) as pilot:
        # The first diagnosis may cover only the first steps that were read.
        while app._diagnosis is None or all(len(said.findings) < 2 for said in app._diagnosis.series.values()):
            await pilot.pause(0.1)
        for view in views:
            app.action_show(view)
            await pilot.pause(1.2)
            path = target / f"{prefix}-{view}.svg"
            path.write_text(screenshot(app, f"swtrace top: {view}"), encoding="utf-8")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--prefix", default="top")
    parser.add_argument("--size", default="120x36")
    parser.add_argument("--views", default=",".join(VIEWS))
    parser.add_argument("--theme", default="swtrace-dark")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    views = arguments.views.split(",")
    asyncio.run(take(arguments.directory, arguments.target, arguments.prefix, (width, height), views, arguments.theme))


if __name__ == "__main__":
    _main()
