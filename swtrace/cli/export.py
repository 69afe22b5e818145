"""``swtrace export FILE``: a recorded run in the formats of other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli.console import narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import Files, Salvage

if TYPE_CHECKING:
    from swtrace.session import RecordingSession


class Format(StrEnum):
    """What to make."""

    PERFETTO = "perfetto"
    OTLP = "otlp"
    PARQUET = "parquet"
    CSV = "csv"


class Rows(StrEnum):
    """What a row of a table is."""

    WAITS = "waits"
    STEPS = "steps"


class Protocol(StrEnum):
    """How to speak to a collector."""

    HTTP = "http/protobuf"
    GRPC = "grpc"


def export(
    files: Files,
    *,
    to: Annotated[Format, typer.Option("--format", "-f", help="The format.", metavar="|".join(Format))],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to make (not for otlp).", metavar="FILE")
    ] = None,
    table: Annotated[
        Rows, typer.Option(help="parquet, csv: a row per wait, or per step.", metavar="|".join(Rows))
    ] = Rows.WAITS,
    endpoint: Annotated[
        str | None, typer.Option(help="otlp: the collector. Default: OTEL_EXPORTER_OTLP_ENDPOINT.", metavar="URL")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="otlp: how to speak to it.", metavar="|".join(Protocol))] = (
        Protocol.HTTP
    ),
    sample: Annotated[float, typer.Option(help="otlp: share of the steps.", min=0.0, max=1.0)] = 1.0,
    series: Annotated[str | None, typer.Option(help="Only this series.", metavar="NAME")] = None,
    salvage: Salvage = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout what was written, as JSON.")] = False,
) -> None:
    """Write a recorded run as a Perfetto trace, as spans to a collector, or as a table.

    perfetto opens in ui.perfetto.dev; parquet and csv in pandas, polars and spreadsheets.
    """
    from swtrace.session import RecordingSession

    if to is not Format.OTLP and output is None:
        raise CommandError(f"--format {to.value} needs --output FILE", ExitCode.USAGE)
    with RecordingSession(files, salvage=salvage) as session:
        if to is Format.OTLP:
            said = _send(session, endpoint, protocol, sample, series)
        else:
            said = _write(session, to, output or Path(), table, series)
    narration().print("swtrace: " + ", ".join(f"{name} {value}" for name, value in said.items()), soft_wrap=True)
    if as_json:
        write_json(said)


def _write(
    session: RecordingSession, to: Format, output: Path, table: Rows, series: str | None
) -> dict[str, int | str]:
    from dataclasses import asdict

    from swtrace.export.files import write_csv, write_parquet
    from swtrace.export.perfetto import PerfettoWriter
    from swtrace.selection import Selection

    selection = Selection(series=series)
    try:
        if to is Format.PERFETTO:
            origins = session.origins()
            with output.open("wb") as out:
                writer = PerfettoWriter(out, session.identities(), origins)
                writer.write(step for step in session.steps() if series in {None, step.series.name})
            return {"path": str(output), **asdict(writer.statistics)}
        write = write_parquet if to is Format.PARQUET else write_csv
        return {"path": str(output), "rows": write(output, session.steps(), table.value, selection)}
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error


def _send(
    session: RecordingSession, endpoint: str | None, protocol: Protocol, sample: float, series: str | None
) -> dict[str, int | str]:
    from dataclasses import asdict

    from swtrace.daemon.sampling import Sampling
    from swtrace.export.otlp import make_exporter, send

    origins = session.origins()
    steps = (step for step in session.steps() if series in {None, step.series.name})
    return asdict(send(steps, origins, make_exporter(endpoint, protocol.value), Sampling(share=sample)))
