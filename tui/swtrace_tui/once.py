"""``swtrace top --once``: the overview as text, in the same lines as on the screen."""

from __future__ import annotations

import time

from swtrace.observing import Roster
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, Picture, picture
from swtrace_tui.views.empty import advice
from swtrace_tui.views.overview import Overview
from swtrace_tui.views.view import Scene

_CHARTS = 40


def read(roster: Roster, selection: Filter, wait_s: float) -> Picture:
    """Read until every origin has answered and a selected series has a finished step, for at most ``wait_s``."""
    deadline = time.monotonic() + wait_s
    while True:
        more = roster.poll()
        if more:
            continue
        seen = picture(roster.observe(), selection)
        if (
            any(series.steps for series in seen.series) and not seen.observation.silent
        ) or time.monotonic() >= deadline:
            return seen
        time.sleep(0.05)


def overview(seen: Picture, width: int) -> str:
    """Return the overview as plain text, ``width`` columns wide; without ranks, return what to do next."""
    if not seen.rows:
        return "".join(f"{'    ' if kind == 'command' else ''}{text}\n" for kind, text in advice(seen, screen=False))
    scene = Scene(seen, MONO, seen.diagnosis)
    lines = Overview().draw(scene, width, len(seen.rows) + len(seen.hosts) + _CHARTS)
    text = "\n".join(strip.text.rstrip() for strip in lines).rstrip() + "\n"
    others = [run for run in seen.runs if run != seen.run]
    return text + (f"\nRun {seen.run}. There are other runs: {', '.join(others)}. --run shows one.\n" if others else "")
