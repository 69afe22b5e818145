"""What the panels of a dashboard would show, as text: Grafana's part between a Prometheus and the screen.

It fills in variables, asks for now or for a time range as the panel does, and reduces, names, sorts and colours the
results. It draws nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.grafana_json import Json, panels
from tests.support.prometheus_process import Prometheus


@dataclass(frozen=True)
class Shown:
    """One line of a panel: a number, a bar, a row of a table, or a curve in a legend."""

    name: str
    """The legend; for a row of a table, its labels in the order of its columns."""
    value: float | None
    """None for a panel without data."""
    text: str
    color: str = ""


@dataclass(frozen=True)
class View:
    """A dashboard at one moment, with a time range that ends then."""

    server: Prometheus
    dashboard: Json
    at: float
    range_s: int = 1800
    scrape_s: int = 5

    def panels(self) -> dict[str, list[Shown]]:
        """Return what every panel shows, by title."""
        variables = self.variables()
        return {panel["title"]: self._shown(panel, variables) for panel in panels(self.dashboard)}

    def marks(self, name: str) -> list[str]:
        """Return the title of each event that an annotation marks."""
        (mark,) = (each for each in self.dashboard["annotations"]["list"] if each["name"] == name)
        span = {"start": self.at - self.range_s, "end": self.at, "step": mark["step"]}
        data: Any = self.server.get("query_range", query=_filled(mark["expr"], self.variables()), **span)
        return [_labelled(mark["titleFormat"], result["metric"]) for result in data["result"]]

    def variables(self) -> dict[str, str]:
        """Return what the variables stand for in queries while nobody has chosen a value."""
        found = {"__rate_interval": f"{4 * self.scrape_s}s", "__range": f"{self.range_s}s"}
        for variable in self.dashboard["templating"]["list"]:
            if variable["type"] == "query":
                values = self._values(variable, found)
                every = variable.get("allValue") or (f"({'|'.join(values)})" if len(values) > 1 else "".join(values))
                found[variable["name"]] = every if variable["includeAll"] else "".join(values[:1])
        return found

    def _values(self, variable: Json, found: Mapping[str, str]) -> list[str]:
        """Return the values of a variable, sorted."""
        query = _filled(variable["query"], found)
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
            selector = {"match[]": match[1], "start": self.at - self.range_s, "end": self.at}
            values = self.server.get(f"label/{match[2]}/values", **selector)
            return sorted(values, key=lambda value: (not value.isdigit(), value.zfill(9)))
        (expr,) = re.fullmatch(r"query_result\((.*)\)", query).groups()  # type: ignore[union-attr]
        pattern = variable["regex"].strip("/")
        lines = [
            "{" + ", ".join(f'{name}="{text}"' for name, text in sample.labels.items()) + "}"
            for sample in self.server.query(expr, self.at)
        ]
        return sorted({re.escape(match[1]) for line in lines if (match := re.search(pattern, line))})

    def _shown(self, panel: Json, variables: Mapping[str, str]) -> list[Shown]:
        lines = list(self._lines(panel, variables))
        if panel["type"] == "table":
            (sort,) = panel["options"].get("sortBy") or [{"displayName": "", "desc": False}]
            by_value = sort["displayName"] in _renamed(panel).values()
            lines.sort(key=lambda line: line.value or 0 if by_value else line.name, reverse=sort["desc"])
        return lines or [Shown("", None, panel["fieldConfig"]["defaults"].get("noValue", "No data"))]

    def _lines(self, panel: Json, variables: Mapping[str, str]) -> Iterator[Shown]:
        for target in panel["targets"]:
            for labels, moment, value in self._results(target, variables):
                if math.isfinite(value):
                    name = (
                        " | ".join(labels.get(column, "") for column in _columns(panel) if column != "Value")
                        if panel["type"] == "table"
                        else _legend(target, labels)
                    )
                    over = (
                        ""
                        if moment is None or self.at - moment <= self.scrape_s
                        else f" until {moment - self.at:.0f} s"
                    )
                    text, color = _look(panel, value)
                    yield Shown(name, value, text + over, color)

    def _results(
        self, target: Json, variables: Mapping[str, str]
    ) -> Iterator[tuple[dict[str, str], float | None, float]]:
        """Yield labels, the moment of the last sample of a range, and the last value, which may be an old one."""
        expr = _filled(target["expr"], variables)
        if target["instant"]:
            for sample in self.server.query(expr, self.at):
                yield sample.labels, None, sample.value
            return
        span = {"start": self.at - self.range_s, "end": self.at, "step": self.scrape_s}
        data: Any = self.server.get("query_range", query=expr, **span)
        for result in data["result"]:
            values = [(float(moment), float(text)) for moment, text in result["values"]]
            finite = [(moment, value) for moment, value in values if math.isfinite(value)]
            if finite:
                yield result["metric"], *finite[-1]


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """Return a query as Grafana sends it. A backslash of a regular expression is escaped once more in PromQL."""
    for name, value in sorted(variables.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"${name}", value.replace("\\", "\\\\"))
    return text


def _legend(target: Json, labels: Mapping[str, str]) -> str:
    if target["legendFormat"] == "__auto":
        return ""
    return _labelled(target["legendFormat"], labels)


def _labelled(text: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text).strip()


def _columns(panel: Json) -> list[str]:
    return list(panel["transformations"][0]["options"]["include"]["names"])


def _renamed(panel: Json) -> dict[str, str]:
    names: dict[str, str] = panel["transformations"][1]["options"].get("renameByName", {})
    return names


def _look(panel: Json, value: float) -> tuple[str, str]:
    """Return the text and the colour of a value, by the panel's defaults and the overrides of a table's value."""
    look = dict(panel["fieldConfig"]["defaults"])
    for override in panel["fieldConfig"]["overrides"] if panel["type"] == "table" else ():
        look |= {each["id"]: each["value"] for each in override["properties"]}
    for mapping in look.get("mappings", ()):
        if found := mapping["options"].get(f"{value:g}"):
            return found["text"], found["color"]
    steps = look.get("thresholds", {}).get("steps", ())
    passed = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    texts = {"percentunit": f"{value:.1%}", "bytes": f"{value / 2**20:.1f} MiB", "s": f"{value * 1e3:.3f} ms"}
    return texts.get(look.get("unit", "none"), f"{value:.4g}"), passed[-1] if passed else ""
