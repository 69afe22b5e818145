"""The ``swtrace`` command line: every subcommand by name, in the order in which users need them."""

from __future__ import annotations

from typing import Annotated

import typer

import swtrace
from swtrace.cli.clean import clean
from swtrace.cli.console import data
from swtrace.cli.daemon import daemon
from swtrace.cli.dashboards import dashboards
from swtrace.cli.demo.demo import demo
from swtrace.cli.demo.faults import HELP as FAULTS
from swtrace.cli.demo_vllm import demo_vllm
from swtrace.cli.diagnose import diagnose
from swtrace.cli.diff import diff
from swtrace.cli.doctor.doctor import doctor
from swtrace.cli.export import export
from swtrace.cli.plan.plan import plan
from swtrace.cli.probe import probe
from swtrace.cli.record import record
from swtrace.cli.report import report
from swtrace.cli.run import run
from swtrace.cli.stats import stats
from swtrace.cli.top import replay, top
from swtrace.cli.usage import Command, Group

app = typer.Typer(
    cls=Group,
    name="swtrace",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("demo", cls=Command, epilog=FAULTS)(demo)
app.command("demo-vllm", cls=Command)(demo_vllm)
# Everything from the first word that is not an option belongs to the command, with or without `--`.
app.command("run", cls=Command, context_settings={"allow_interspersed_args": False})(run)
for name, command in (
    ("top", top),
    ("diagnose", diagnose),
    ("daemon", daemon),
    ("record", record),
    ("replay", replay),
    ("stats", stats),
    ("diff", diff),
    ("plan", plan),
    ("export", export),
    ("report", report),
    ("probe", probe),
    ("doctor", doctor),
    ("clean", clean),
):
    app.command(name, cls=Command)(command)
app.add_typer(dashboards, name="dashboards")


def _version(requested: bool) -> None:  # noqa: FBT001 (typer's callback)
    if requested:
        data().print(f"swtrace {swtrace.__version__}")
        raise typer.Exit


@app.callback()
def _about(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Share weights between vLLM's ranks or watch vLLM offload them, and see whether transfers hide behind compute.

    Try `swtrace demo` for an example on this machine, or `swtrace run -- vllm serve MODEL` for your own model.
    """
