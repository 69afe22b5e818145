"""Checks that need npm: dashboards against Grafana's TypeScript schema, manifests and the chart against the operator's.

``make check-schemas``. npm's packages are installed into a temporary folder. Each check must also refuse an invalid
example.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import yaml

from deploy import chart

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "dashboards" / "grafana" / "dashboards").glob("*.json"))
PACKAGES = (
    "@grafana/schema@13.2.3",
    "@kubernetes-models/prometheus-operator@5",
    "typescript@5.9",
)
PANELS = {
    "bargauge": "BarGauge",
    "heatmap": "Heatmap",
    "stat": "Stat",
    "state-timeline": "StateTimeline",
    "table": "Table",
    "timeseries": "TimeSeries",
}
"""Kinds of panels, and the names of their files in Grafana's schema."""

TYPES = """
import type { AnnotationQuery, Dashboard, DataQuery } from "@grafana/schema";
%(imports)s
// JSON has an enumeration's values, not its names.
type Json<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]?: Json<T[K]> } : T;
// The schema package has no types for a query to Prometheus and for what its annotations add.
type Query = DataQuery & {
  expr: string; format: "time_series" | "table" | "heatmap"; legendFormat: string;
  instant: boolean; range: boolean; exemplar?: boolean;
};
type Mark = AnnotationQuery & { expr: string; step: string; titleFormat: string; textFormat: string };
type Options = { %(options)s };
type Custom = { %(custom)s };
"""

OPERATOR = """
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { readFileSync } from "node:fs";
const given = JSON.parse(readFileSync(0, "utf8"));
new { PodMonitor, PrometheusRule }[given.kind](given).validate();
"""

MONITORED = {
    "podMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "interval": "15s",
        "scheme": "https",
        "metricRelabelings": [{"action": "labeldrop", "regex": "host"}],
        "basicAuth": {"username": {"name": "login", "key": "user"}, "password": {"name": "login", "key": "password"}},
        "tlsConfig": {"ca": {"secret": {"name": "web", "key": "ca.crt"}}},
    },
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "webConfig": {"secretName": "web"},
}
"""Values of the chart for what the operator reads."""

Json = dict[str, Any]


def main() -> int:
    """Run every check. Return 0 if all hold."""
    with tempfile.TemporaryDirectory(prefix="swtrace-schemas-") as name:
        folder = Path(name)
        (folder / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], folder, check=True)
        results = [
            ("dashboards fit Grafana's schema", _typescript(folder, [_load(path) for path in DASHBOARDS])),
            *((f"refused: {what}", not _typescript(folder, [wrong], quiet=True)) for what, wrong in _wrong()),
            ("PodMonitor fits the operator's schema", _operator(folder, _pod_monitor())),
            ("refused: a port that is a number", not _operator(folder, _wrong_pod_monitor(), quiet=True)),
            *(
                (f"the chart's {kind} fits the operator's schema", _operator(folder, made))
                for (kind, _), made in chart.objects(MONITORED).items()
                if kind in {"PodMonitor", "PrometheusRule"}
            ),
            ("PrometheusRule fits the operator's schema", _operator(folder, _prometheus_rule(folder))),
        ]
    for text, holds in results:
        sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {text}\n")
    return 0 if all(holds for _, holds in results) else 1


def _typescript(folder: Path, dashboards: list[Json], *, quiet: bool = False) -> bool:
    raw = "@grafana/schema/dist/esm/raw/composable"
    imports = "\n".join(
        f'import type * as {name} from "{raw}/{kind.replace("-", "")}/panelcfg/x/{name}PanelCfg_types.gen";'
        for kind, name in PANELS.items()
    )
    lines = [
        TYPES
        % {
            "imports": imports,
            "options": "; ".join(f'"{kind}": {name}.Options' for kind, name in PANELS.items()),
            "custom": "; ".join(f'"{kind}": {_custom(name)}' for kind, name in PANELS.items()),
        }
    ]
    for number, dashboard in enumerate(dashboards):
        marks = {"list": dashboard["annotations"]["list"]}
        lines.append(
            f"export const d{number} = {json.dumps(dashboard | {'annotations': {}})} satisfies Json<Dashboard>;"
        )
        lines.append(f"export const d{number}a = {json.dumps(marks)} satisfies Json<{{ list: Mark[] }}>;")
        for panel in _panels(dashboard):
            name, kind = f"d{number}p{panel['id']}", json.dumps(panel["type"])
            custom = panel["fieldConfig"]["defaults"].get("custom", {})
            lines += [
                f"export const {name}o = {json.dumps(panel.get('options', {}))} satisfies Json<Options[{kind}]>;",
                f"export const {name}c = {json.dumps(custom)} satisfies Json<Custom[{kind}]>;",
                *(
                    f"export const {name}q{index} = {json.dumps(target)} satisfies Json<Query>;"
                    for index, target in enumerate(panel["targets"])
                ),
            ]
    (folder / "check.ts").write_text("\n".join(lines), encoding="utf-8")
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    return _run(["npx", "tsc", *options, "check.ts"], folder, quiet=quiet)


def _panels(dashboard: Json) -> list[Json]:
    """Return the panels, also of collapsed rows, without the rows."""
    nested = [panel for row in dashboard["panels"] for panel in row.get("panels", ())]
    return [panel for panel in (*dashboard["panels"], *nested) if panel["type"] != "row"]


def _custom(name: str) -> str:
    """Return the type of a panel's custom field settings. Some kinds have none."""
    return "Record<string, never>" if name in {"BarGauge", "Stat"} else f"{name}.FieldConfig"


def _wrong() -> list[tuple[str, Json]]:
    """Return dashboards that Grafana's schema must refuse, each with one mistake."""
    dashboard = _load(DASHBOARDS[0])
    index = next(i for i, panel in enumerate(dashboard["panels"]) if panel["type"] == "timeseries")

    def changed(path: str, value: object) -> Json:
        document = copy.deepcopy(dashboard)
        *parents, last = re.split(r"\.", path)
        place = document["panels"][index]
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
        return document

    return [
        ("a legend of unknown placement", changed("options.legend.placement", "middle")),
        ("an option that no panel has", changed("options.colour", "red")),
        ("a title that is a number", changed("title", 1)),
        ("a width that is text", changed("gridPos.w", "12")),
        ("an unknown format of a query", changed("targets.0.format", "curve")),
        ("an annotation whose colour is a number", _wrong_annotation(dashboard)),
    ]


def _wrong_annotation(dashboard: Json) -> Json:
    document = copy.deepcopy(dashboard)
    document["annotations"]["list"][0]["iconColor"] = 1
    return document


def _operator(folder: Path, document: Json, *, quiet: bool = False) -> bool:
    (folder / "check.mjs").write_text(OPERATOR, encoding="utf-8")
    return _run(["node", "check.mjs"], folder, text=json.dumps(document), quiet=quiet)


def _prometheus_rule(folder: Path) -> Json:
    """Return what ``swtrace dashboards export`` writes."""
    _run([sys.executable, "-m", "swtrace", "dashboards", "export", str(folder / "export")], ROOT, check=True)
    text = (folder / "export" / "kubernetes" / "prometheusrule.yaml").read_text(encoding="utf-8")
    return cast("Json", yaml.safe_load(text))


def _pod_monitor() -> Json:
    return cast("Json", yaml.safe_load((ROOT / "deploy/kubernetes/podmonitor.yaml").read_text(encoding="utf-8")))


def _wrong_pod_monitor() -> Json:
    document = _pod_monitor()
    document["spec"]["podMetricsEndpoints"][0]["port"] = 9465
    return document


def _load(path: Path) -> Json:
    return cast("Json", json.loads(path.read_text(encoding="utf-8")))


def _run(command: list[str], folder: Path, *, text: str = "", quiet: bool = False, check: bool = False) -> bool:
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=False)
    if done.returncode and (check or not quiet):
        sys.stderr.write(done.stdout + done.stderr)
    if check:
        done.check_returncode()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
