"""Write the JSON of every dashboard: ``python -m dashboards.source``."""

from __future__ import annotations

from pathlib import Path

from dashboards.source.board import to_json
from dashboards.source.fleet import fleet
from dashboards.source.health import health
from dashboards.source.rank import rank

DIRECTORY = Path(__file__).parents[1] / "grafana" / "dashboards"


def documents() -> dict[str, str]:
    """Return the text of every file, by its name."""
    boards = {"swtrace-fleet": fleet, "swtrace-rank": rank, "swtrace-health": health}
    return {f"{name}.json": to_json(make()) for name, make in boards.items()}


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in documents().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
