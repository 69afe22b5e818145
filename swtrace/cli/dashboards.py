"""``swtrace dashboards``: export dashboards, rules and provisioning for existing Grafana and Prometheus servers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from swtrace.cli.arguments import not_empty
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.usage import Command, Group

dashboards = typer.Typer(
    cls=Group, no_args_is_help=True, help="Export Grafana dashboards and Prometheus rules for your own servers."
)

_PROMETHEUS = "http://prometheus:9090"
_TEMPO = "http://tempo:3200"
_DASHBOARDS = "/etc/grafana/dashboards"
"""The paths and URLs in the files as docker-compose.yml uses them."""
_RULES = ("swtrace.rules.yml", "swtrace.alerts.yml")
_PROMETHEUS_RULE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: swtrace
  labels:
    app.kubernetes.io/name: swtrace
spec:
  groups:
"""


@dashboards.callback()
def _about() -> None:
    """Export Grafana dashboards and Prometheus rules for your own servers."""


@dashboards.command("export", cls=Command)
def export(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder to write to; created if missing.", parser=not_empty("DIR", Path)),
    ],
    *,
    prometheus: Annotated[
        str, typer.Option(metavar="URL", help="Address of Prometheus as seen by Grafana.")
    ] = _PROMETHEUS,
    tempo: Annotated[str, typer.Option(metavar="URL", help="Address of Tempo as seen by Grafana.")] = _TEMPO,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="List the written files as JSON.")] = False,
) -> None:
    """Write dashboards, provisioning and rules to DIR.

    Import the dashboards in `grafana/dashboards`, or let `grafana/provisioning` load them. `prometheus` has the rules,
    and `kubernetes` the same rules for the Prometheus Operator. Prints the names of the written files on stdout.
    """
    documents = _documents(directory, prometheus=prometheus, tempo=tempo)
    differing = [path for path, text in documents.items() if path.exists() and path.read_text("utf-8") != text]
    if differing and not force:
        raise CommandError(
            f"{differing[0]} already exists and differs; use --force to overwrite it, or choose another folder"
        )
    try:
        for path, text in documents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write to {directory}: {error.strerror or error}") from error
    if as_json:
        write_json({"written": [str(path) for path in documents]})
    else:
        for path in documents:
            data().print(str(path), soft_wrap=True, markup=False)
    narration().print(
        "Import grafana/dashboards, or provision Grafana with grafana/provisioning. "
        "Load prometheus/*.yml as rule_files.",
        soft_wrap=True,
    )


def _documents(directory: Path, *, prometheus: str, tempo: str) -> dict[Path, str]:
    """Return the text of every file, by its path."""
    source = _source()
    grafana = directory.absolute() / "grafana"
    documents = {
        grafana / "dashboards" / path.name: path.read_text("utf-8")
        for path in sorted((source / "grafana" / "dashboards").glob("*.json"))
    }
    for name in ("dashboards", "datasources"):
        text = (source / "grafana" / "provisioning" / name / "swtrace.yml").read_text("utf-8")
        for mounted, own in (
            (_DASHBOARDS, str(grafana / "dashboards")),
            (_PROMETHEUS, prometheus),
            (_TEMPO, tempo),
        ):
            text = text.replace(mounted, own)
        documents[grafana / "provisioning" / name / "swtrace.yml"] = text
    rules = {name: (source / "prometheus" / name).read_text("utf-8") for name in _RULES}
    documents |= {directory.absolute() / "prometheus" / name: text for name, text in rules.items()}
    documents[directory.absolute() / "kubernetes" / "prometheusrule.yaml"] = _prometheus_rule(rules.values())
    return documents


def _prometheus_rule(files: Iterable[str]) -> str:
    """Return the rules for the Prometheus Operator: the files' groups, one level deeper."""
    groups = "".join(text.partition("groups:\n")[2] for text in files)
    return _PROMETHEUS_RULE + textwrap.indent(groups, "  ")


def _source() -> Path:
    """Return the folder of the files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_dashboards"
    return packaged if packaged.is_dir() else package.parent / "dashboards"
