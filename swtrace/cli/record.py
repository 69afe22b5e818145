"""``swtrace record -o FILE``: keep everything that ranks write, to be looked at later."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli import units
from swtrace.cli.console import narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import size

if TYPE_CHECKING:
    from rich.console import Console

    from swtrace.recording.capture import Capture
    from swtrace.recording.remote import RemoteCapture
    from swtrace.recording.writer import RecordingWriter

_POLL_S = 0.05
_SHOW_S = 0.5
_LINE_S = 5.0


def record(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to make.", metavar="FILE")],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", envvar="SWTRACE_DIR", help="Folder of the rings. Default: the per-user one on tmpfs."),
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Record through daemons, one per host, instead of local rings."),
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Record this run only. Default: every run.")] = None,
    duration: Annotated[float | None, typer.Option(help="End after this long.", metavar="SECONDS")] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="End when every rank that was seen has ended.")
    ] = False,
    max_size: Annotated[str | None, typer.Option(help="End at about this size.", metavar="SIZE")] = None,
    rotate: Annotated[
        str | None, typer.Option(help="Begin another file (FILE.1, FILE.2, ...) at about this size.", metavar="SIZE")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="With --rotate: keep only the newest so many files.", metavar="N", min=1)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout what was recorded, as JSON.")] = False,
) -> None:
    """Record every rank of this host, or of several through their daemons, until Ctrl-C.

    Begins with what the rings still hold, so that a run that has just ended can be recorded, too. Killed at any
    moment, the file can be read up to the last half second.
    """
    from swtrace.recording.capture import Capture
    from swtrace.recording.remote import RemoteCapture
    from swtrace.recording.writer import RecordingWriter
    from swtrace.trace.directory import default_directory
    from swtrace.trace.tail import allow_open_files

    if keep is not None and rotate is None:
        raise CommandError("--keep needs --rotate", ExitCode.USAGE)
    allow_open_files()
    limit = size(max_size) if max_size else None
    writer = RecordingWriter(output, overwrite=force, part_bytes=size(rotate) if rotate else None, keep_parts=keep)
    console = narration()
    with writer:
        capture: Capture | RemoteCapture
        if connect is not None:
            capture = RemoteCapture(
                [each.strip() for each in connect.split(",") if each.strip()], writer, run_id=run_id
            )
            console.print(f"swtrace: recording {connect} into {output}", soft_wrap=True)
        else:
            rings = directory or default_directory()
            capture = Capture(rings, writer, run_id=run_id)
            console.print(f"swtrace: recording {rings} into {output}", soft_wrap=True)
        try:
            reason = _follow(capture, writer, duration=duration, until_end=until_end, limit=limit, console=console)
        finally:
            capture.finish()
    _conclude(capture, writer, reason, console, as_json=as_json)


def _follow(
    capture: Capture | RemoteCapture,
    writer: RecordingWriter,
    *,
    duration: float | None,
    until_end: bool,
    limit: int | None,
    console: Console,
) -> str:
    """Record until it is time to end; return why."""
    from swtrace.recording.remote import RemoteCapture

    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _frame: stopped.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    begun = time.monotonic()
    shown = begun if console.is_terminal else begun - _LINE_S + 1.0
    try:
        with console.status("waiting for ranks") as status:
            while not stopped:
                more = capture.poll()
                now = time.monotonic()
                if duration is not None and now - begun >= duration:
                    return "time is up"
                if limit is not None and writer.statistics().bytes >= limit:
                    return "size reached"
                ranks = capture.states() if until_end and not more else ()
                if isinstance(capture, RemoteCapture) and len(capture.ended) == capture.daemons and not more:
                    return "every daemon has gone"
                if ranks and not any(rank.alive or rank.statistics.pending for rank in ranks):
                    return "every rank has ended"
                if now - shown >= (_SHOW_S if console.is_terminal else _LINE_S):
                    shown = now
                    status.update(_progress(capture, writer, now - begun))
                    if not console.is_terminal:
                        console.print(_progress(capture, writer, now - begun), soft_wrap=True)
                if not more:
                    time.sleep(_POLL_S)
            return "interrupted"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(capture: Capture | RemoteCapture, writer: RecordingWriter, elapsed_s: float) -> str:
    statistics = writer.statistics()
    ranks = capture.states()
    facts = capture.ledger.facts()
    ratios = [rank.recent.stall_ratio for series in facts.series for rank in series.ranks]
    stall = max((ratio for ratio in ratios if ratio is not None), default=None)
    lost = sum(rank.statistics.lost for rank in ranks)
    alive = sum(rank.alive for rank in ranks)
    return (
        f"{elapsed_s:.0f} s: {alive} of {len(ranks)} ranks alive, {statistics.records} records, "
        f"{units.size(statistics.bytes)}, {lost} lost, stall {units.ratio(stall)}"
    )


def _conclude(
    capture: Capture | RemoteCapture, writer: RecordingWriter, reason: str, console: Console, *, as_json: bool
) -> None:
    statistics = writer.statistics()
    facts = capture.ledger.facts()
    console.print(
        f"swtrace: {reason}. {statistics.records} records of {len(facts.ranks)} ranks, "
        f"{units.size(statistics.bytes)} in {statistics.parts} file(s).",
        soft_wrap=True,
    )
    complaints = _complaints(capture)
    for complaint in complaints:
        console.print(f"swtrace: {complaint}", soft_wrap=True, markup=False)
    if not facts.ranks and not complaints:
        console.print("No rank wrote into that folder. `swtrace doctor` says what may be missing.")
    if as_json:
        write_json(
            {
                "reason": reason,
                "path": str(writer.path),
                "records": statistics.records,
                "bytes": statistics.bytes,
                "parts": statistics.parts,
                "ranks": len(facts.ranks),
            }
        )
    if not facts.ranks and complaints:
        raise CommandError("nothing was recorded: no ring, or no daemon's answer, could be read")


def _complaints(capture: Capture | RemoteCapture) -> list[str]:
    """Return what could not be recorded, and why."""
    from swtrace.recording.remote import RemoteCapture

    if isinstance(capture, RemoteCapture):
        return [f"{address}: {why}" for address, why in sorted(capture.ended.items()) if address in capture.damaged]
    return [text for _, text in sorted(capture.watch.tail.problems.items())]
