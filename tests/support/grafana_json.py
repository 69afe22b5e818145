"""The contents of the committed dashboards: panels, queries and variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards" / "grafana" / "dashboards"
FILES = sorted(DASHBOARDS.glob("*.json"))

Json = dict[str, Any]


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str
    instant: bool
    legend: str

    def __str__(self) -> str:
        """Return its name for failures."""
        return f"{self.dashboard} / {self.panel}: {self.expr}"

    def filled(self, **variables: str) -> str:
        """Return the query as Grafana sends it."""
        text = self.expr
        for name, value in sorted(variables.items(), key=lambda item: -len(item[0])):
            text = text.replace(f"${name}", value)
        assert "$" not in text, text
        return text


def load(path: Path) -> Json:
    """Return a dashboard."""
    document: Json = json.loads(path.read_text(encoding="utf-8"))
    return document


def panels(dashboard: Json) -> Iterator[Json]:
    """Yield the panels, also of collapsed rows, without the rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def queries() -> list[PanelQuery]:
    """Return every query of every panel of every dashboard."""
    return [
        PanelQuery(path.stem, panel["title"], target["expr"], target["instant"], target["legendFormat"])
        for path in FILES
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


def marks() -> set[str]:
    """Return the query of every annotation."""
    return {annotation["expr"] for path in FILES for annotation in load(path)["annotations"]["list"]}
