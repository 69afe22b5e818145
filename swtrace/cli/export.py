"""``swtrace export FILE``: convert a recorded run to the formats of other tools."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli.arguments import Force, choice_option, file_option, number, refuse_existing, refuse_own_input
from swtrace.cli.console import narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import Files, Salvage
from swtrace.cli.signals import exit_in_order
from swtrace.errors import SettingsError
from swtrace.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.session import RecordingSession


STDOUT = Path("-")


class Format(StrEnum):
    """The output format."""

    PERFETTO = "perfetto"
    OTLP = "otlp"
    PARQUET = "parquet"
    CSV = "csv"


class Rows(StrEnum):
    """What a row of a table is."""

    WAITS = "waits"
    STEPS = "steps"


class Protocol(StrEnum):
    """The OTLP protocol."""

    HTTP = "http/protobuf"
    GRPC = "grpc"


def export(
    files: Files,
    *,
    to: Annotated[Format, choice_option("--format", "-f", kind=Format, metavar="FORMAT", text="Format of the output")],
    output: Annotated[
        Path | None,
        file_option("--output", "-o", text="File to write, or - for stdout (not for otlp)."),
    ] = None,
    table: Annotated[
        Rows | None,
        choice_option("--table", kind=Rows, metavar="ROWS", text="parquet, csv: what a row is (default waits)"),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="otlp: the collector. Default: `OTEL_EXPORTER_OTLP_ENDPOINT`.", metavar="URL")
    ] = None,
    protocol: Annotated[
        Protocol | None,
        choice_option(
            "--protocol",
            kind=Protocol,
            metavar="PROTOCOL",
            text="otlp: the collector's protocol (default http/protobuf)",
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            "--sample",
            help="otlp: share of the steps to send, from 0 to 1. Default: all.",
            metavar="SHARE",
            parser=number("--sample", 0, 1),
        ),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Only this series.", metavar="NAME")] = None,
    salvage: Salvage = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Export a recording as a Perfetto trace, as spans to a collector, or as a table.

    Open perfetto files in ui.perfetto.dev, and parquet and csv files in pandas, polars or spreadsheets.
    """
    from swtrace.otel_variables import remove_unusable_variables

    exit_in_order()
    if to not in {Format.PARQUET, Format.CSV}:
        _refuse_beside(to, {"--table": table})
    if to is Format.OTLP:
        _refuse_beside(to, {"--output": output, "--force": force or None})
        _check_collector(endpoint, protocol or Protocol.HTTP)
    else:
        _refuse_beside(to, {"--endpoint": endpoint, "--protocol": protocol, "--sample": sample})
        _check_output(to, output, files, force=force, as_json=as_json)
    remove_unusable_variables(os.environ)
    from swtrace.session import RecordingSession

    with RecordingSession(files, salvage=salvage) as session:
        if series is not None:
            _require_series(series, sorted({facts.key.name for facts in session.facts().series}))
        if to is Format.OTLP:
            result = _send(session, endpoint, protocol or Protocol.HTTP, 1.0 if sample is None else sample, series)
            sentence = f"Sent {counted(result['spans'], 'span')} of {counted(result['steps'], 'step')} to the collector"
        else:
            path = output or Path()
            result = _write(session, to, path, table or Rows.WAITS, series)
            rows = counted(result["rows"], "row") if "rows" in result else counted(result["steps"], "step slice")
            sentence = f"Wrote {rows} to {'stdout' if path == STDOUT else path}"
            if left_out := result.get("left_out"):
                sentence += f"; left out {counted(left_out, 'row')} of aborted or unfinished steps"
    narration().print(sentence, soft_wrap=True, markup=False)
    if as_json:
        write_json(result)


def _require_series(series: str, known: Sequence[str]) -> None:
    """Refuse a series that was not recorded.

    Raises:
        SettingsError: no series has that name; the message lists those that were recorded.
    """
    if series not in known:
        choices = f"must be one of: {', '.join(known)}" if known else "no series was recorded"
        raise SettingsError(f"--series={series!r}: {choices}")


def _refuse_beside(to: Format, options: dict[str, object]) -> None:
    """Refuse options that do not apply to a format.

    Raises:
        CommandError: one of them was given.
    """
    for option, value in options.items():
        if value is not None:
            raise CommandError(f"{option} cannot be used with --format {to.value}", ExitCode.USAGE)


def _check_output(to: Format, output: Path | None, files: Sequence[Path], *, force: bool, as_json: bool) -> None:
    """Refuse an output that cannot be written.

    Raises:
        CommandError: no output is given, it is an input file or exists, or the format cannot go to stdout.
    """
    if output is None:
        raise CommandError(f"--format {to.value} needs --output FILE", ExitCode.USAGE)
    if output != STDOUT:
        refuse_own_input(output, files)
        refuse_existing(output, force=force)
        return
    if to is Format.PARQUET:
        raise CommandError("--format parquet cannot be written to stdout; --output must be a file", ExitCode.USAGE)
    if to is Format.PERFETTO and sys.stdout.isatty():
        raise CommandError("--format perfetto is binary; redirect stdout to a file", ExitCode.USAGE)
    if as_json:
        raise CommandError("--json and --output - both write to stdout; use only one of them", ExitCode.USAGE)


def _check_collector(endpoint: str | None, protocol: Protocol) -> None:
    """Refuse to send anything unless a collector was named.

    Raises:
        CommandError: no collector is named.
        SettingsError: an ``OTEL_*`` variable or the endpoint cannot be used.
    """
    from swtrace.otel_variables import Signal, check_detectors, check_endpoint, check_otlp, otlp_variable

    if endpoint is not None:
        check_endpoint("--endpoint", endpoint, protocol.value)
    elif not otlp_variable(os.environ, "ENDPOINT", Signal.TRACES)[1]:
        raise CommandError(
            "--format otlp needs a collector: use --endpoint URL or set OTEL_EXPORTER_OTLP_ENDPOINT", ExitCode.USAGE
        )
    check_otlp(os.environ, protocol.value, Signal.TRACES)
    check_detectors(os.environ)


def _write(
    session: RecordingSession, to: Format, output: Path, table: Rows, series: str | None
) -> dict[str, int | str]:
    from swtrace.export.files import opened, write_csv, write_parquet
    from swtrace.export.perfetto import PerfettoWriter

    steps = (step for step in session.steps() if series in {None, step.series.name})
    with opened(sys.stdout.buffer if output == STDOUT else output) as out:
        if to is Format.PERFETTO:
            writer = PerfettoWriter(out, session.identities(), session.origins())
            writer.write(steps)
            return {"path": str(output), **asdict(writer.statistics)}
        write = write_parquet if to is Format.PARQUET else write_csv
        return {"path": str(output), **asdict(write(out, steps, table.value))}


def _send(
    session: RecordingSession, endpoint: str | None, protocol: Protocol, sample: float, series: str | None
) -> dict[str, int | str]:
    """Send spans to a collector.

    Raises:
        CommandError: the collector did not accept them.
    """
    from swtrace.export.otlp import CollectorError, send
    from swtrace.spans.exporters import otlp_exporter
    from swtrace.spans.traces import Sampling

    heard = _Heard()
    library = logging.getLogger("opentelemetry")
    library.addHandler(heard)
    library.propagate = False
    steps = (step for step in session.steps() if series in {None, step.series.name})
    exporter = otlp_exporter(endpoint, protocol.value)
    try:
        return asdict(send(steps, session.origins(), exporter, Sampling(share=sample)))
    except CollectorError as error:
        raise CommandError(f"{error}{f' ({heard.reason})' if heard.reason else ''}") from error


class _Heard(logging.Handler):
    """Keeps the reason for a failure from the many lines that OpenTelemetry logs about it."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        found = re.search(r"\[Errno -?\d+\] ([^\"')]+)|code: \d+, reason: \S.*|\bFailed to connect .*", text)
        if found is not None:
            self.reason = found[1] or found[0]
        elif not self.reason:
            self.reason = text.partition("\n")[0]
