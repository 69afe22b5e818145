"""Draw ``docs/images/wall.svg``: the dashboards' own queries, answered by a real Prometheus over three demos in a row.

It shows the data that Grafana would get, not Grafana: ``python tests/dashboards/draw_wall.py``. Needs the test
dependencies and Prometheus.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.daemon_command import daemon, environment  # noqa: E402
from tests.support.grafana_json import PanelQuery, queries  # noqa: E402
from tests.support.prometheus_process import Prometheus, prometheus  # noqa: E402

SCENARIOS = ("hidden", "stalled", "straggler")
SECONDS = 25
PAUSE_S = 4
SCOPE = {
    "job": "swtrace",
    "daemon": ".*",
    "host": ".*",
    "series": ".*",
    "rank": ".*",
    "__rate_interval": "6s",
    "__range": "120s",
}
PANELS = (
    ("swtrace-fleet", "Stall ratio by rank", "lines", "%"),
    ("swtrace-fleet", "Stall by cause", "stack", "%"),
    ("swtrace-fleet", "Straggler", "lines", "%"),
    ("swtrace-fleet", "Prefetch efficiency by rank", "lines", "%"),
    ("swtrace-rank", "Stall per wait", "heat", "s"),
    ("swtrace-rank", "Slack per wait", "heat", "s"),
    ("swtrace-rank", "Occupancy by state", "stack", ""),
    ("swtrace-rank", "Bandwidth", "lines", "B/s"),
)
COLORS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#8f8f8f")
WIDTH, HEIGHT = 560, 170
LEFT, TOP, GAP = 62, 34, 40

Curves = list[tuple[str, dict[int, float]]]


@dataclass(frozen=True)
class Span:
    """What time the picture shows, and which demo ran when."""

    begin: float
    end: float
    demos: tuple[tuple[str, float, float], ...]

    def x(self, moment: float) -> float:
        """Return where a moment lies within a panel."""
        return (moment - self.begin) / (self.end - self.begin) * WIDTH


def main() -> None:
    """Run the demos, ask Prometheus, draw."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        rings = Path(name) / "rings"
        rings.mkdir()
        with daemon(rings) as served:
            address = f"{served.client.base_url.host}:{served.client.base_url.port}"
            with prometheus(Path(name), [address], scrape_s=1) as server:
                begin = time.time()
                demos = tuple(_demo(scenario, rings) for scenario in SCENARIOS)
                span = Span(begin, time.time(), demos)
                drawn = [_panel(server, span, *panel) for panel in PANELS]
    (ROOT / "docs" / "images" / "wall.svg").write_text(_page(drawn), encoding="utf-8")


def _demo(scenario: str, rings: Path) -> tuple[str, float, float]:
    begin = time.time()
    command = [sys.executable, "-m", "swtrace", "demo", "--scenario", scenario, "--no-daemon"]
    subprocess.run(
        [*command, "--ranks", "3", "--duration", str(SECONDS)],
        env=environment(SWTRACE_DIR=str(rings)),
        capture_output=True,
        check=True,
    )
    end = time.time()
    time.sleep(PAUSE_S)
    return scenario, begin, end


def _panel(server: Prometheus, span: Span, dashboard: str, title: str, kind: str, unit: str) -> str:
    (query,) = (query for query in queries() if (query.dashboard, query.panel) == (dashboard, title))
    curves = _curves(server, query, span)
    body, top = {"lines": _lines, "stack": _stack, "heat": _heat}[kind](curves, span)
    marks = "".join(
        f'<text class="demo" x="{span.x((max(a, span.begin) + b) / 2):.0f}" y="{HEIGHT + 14}">{demo}</text>'
        for demo, a, b in span.demos
    )
    axis = "" if kind == "heat" else _axis(top, unit)
    legend = "" if kind == "heat" else _legend(curves, kind)
    return (
        f'<text class="title" x="0" y="-18">{escape(title)}</text>{body}{axis}{marks}{legend}'
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>'
    )


def _curves(server: Prometheus, query: PanelQuery, span: Span) -> Curves:
    data: Any = server.get("query_range", query=query.filled(**SCOPE), start=int(span.begin), end=int(span.end), step=1)
    found = []
    for result in data["result"]:
        metric = result["metric"]
        name = metric.get("le") or metric.get("cause") or metric.get("state") or f"rank {metric.get('rank')}"
        values = {int(moment): float(value) for moment, value in result["values"]}
        found.append((name, {moment: value for moment, value in values.items() if isfinite(value)}))
    return sorted(found, key=lambda curve: (float(curve[0]),) if query.legend == "{{le}}" else (0, curve[0]))


def _lines(curves: Curves, span: Span) -> tuple[str, float]:
    top = max((value for _, values in curves for value in values.values()), default=0) * 1.05 or 1
    drawn = []
    for index, (_, values) in enumerate(curves):
        path, before = [], None
        for moment, value in sorted(values.items()):
            command = "L" if before is not None and moment - before <= 1 else "M"
            path.append(f"{command}{span.x(moment):.1f} {HEIGHT - value / top * HEIGHT:.1f}")
            before = moment
        drawn.append(f'<path class="line" stroke="{COLORS[index % len(COLORS)]}" d="{" ".join(path)}"/>')
    return "".join(drawn), top


def _stack(curves: Curves, span: Span) -> tuple[str, float]:
    moments = sorted({moment for _, values in curves for moment in values})
    top = max((sum(values.get(moment, 0) for _, values in curves) for moment in moments), default=0) * 1.05 or 1
    wide = WIDTH / (span.end - span.begin) + 0.3
    below = dict.fromkeys(moments, 0.0)
    drawn = []
    for index, (_, values) in enumerate(curves):
        for moment, value in values.items():
            high = value / top * HEIGHT
            y = HEIGHT - below[moment] / top * HEIGHT - high
            below[moment] += value
            if high >= 0.1:  # of a pixel
                drawn.append(
                    f'<rect fill="{COLORS[index % len(COLORS)]}" x="{span.x(moment):.1f}" y="{y:.1f}"'
                    f' width="{wide:.1f}" height="{high:.1f}"/>'
                )
    return "".join(drawn), top


def _heat(curves: Curves, span: Span) -> tuple[str, float]:
    """Draw a histogram's rows: cumulative buckets, one less the one below it."""
    high, wide = HEIGHT / len(curves), WIDTH / (span.end - span.begin) + 0.3
    rows = []
    below: dict[int, float] = {}
    for bound, values in curves:
        rows.append((bound, {moment: value - below.get(moment, 0) for moment, value in values.items()}))
        below = values
    most = max((value for _, values in rows for value in values.values()), default=1) or 1
    drawn = []
    for index, (bound, values) in enumerate(rows):
        y = HEIGHT - (index + 1) * high
        if index % 3 == 0:
            drawn.append(f'<text class="tick" x="-6" y="{y + high:.0f}">{bound} s</text>')
        drawn += [
            f'<rect fill="#c4162a" fill-opacity="{(value / most) ** 0.5:.2f}" x="{span.x(moment):.1f}" y="{y:.1f}"'
            f' width="{wide:.1f}" height="{high:.1f}"/>'
            for moment, value in values.items()
            if value > 0
        ]
    return "".join(drawn), 0


def _axis(top: float, unit: str) -> str:
    ticks = []
    for part in (0.0, 0.5, 1.0):
        value = top * part / 1.05
        text = {"%": f"{value * 100:.0f} %", "B/s": f"{value / 1e6:.0f} MB/s"}.get(unit, f"{value:.0f}")
        y = HEIGHT - part / 1.05 * HEIGHT
        ticks.append(f'<text class="tick" x="-6" y="{y + 4:.0f}">{text}</text>')
        ticks.append(f'<path class="grid" d="M0 {y:.1f}H{WIDTH}"/>')
    return "".join(ticks)


def _legend(curves: Curves, kind: str) -> str:
    drawn, x = [], WIDTH
    for index, (name, _) in reversed(list(enumerate(curves))):
        x -= 7 * len(name) + 22
        color = COLORS[index % len(COLORS)]
        drawn.append(f'<rect x="{x}" y="-26" width="10" height="{3 if kind == "lines" else 10}" fill="{color}"/>')
        drawn.append(f'<text class="legend" x="{x + 14}" y="-18">{escape(name)}</text>')
    return "".join(drawn)


def _page(drawn: list[str]) -> str:
    across, down = WIDTH + LEFT + GAP, HEIGHT + TOP + GAP
    placed = "".join(
        f'<g transform="translate({LEFT + (index % 2) * across},{TOP + 10 + (index // 2) * down})">{panel}</g>'
        for index, panel in enumerate(drawn)
    )
    width, height = 2 * across, (len(drawn) + 1) // 2 * down + 10
    style = (
        "text{font:12px sans-serif;fill:#333}.title{font-weight:bold;font-size:14px}.tick{text-anchor:end;fill:#666}"
        ".demo{text-anchor:middle;fill:#666}.line{fill:none;stroke-width:1.6}.grid{stroke:#0002}"
        ".frame{fill:none;stroke:#0004}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{placed}</svg>\n'
    )


if __name__ == "__main__":
    main()
