"""``swtrace record``: record everything that ranks write, for later analysis."""

from __future__ import annotations

import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import (
    CaOption,
    CertOption,
    Force,
    KeyOption,
    PasswordFileOption,
    UserOption,
    credentials,
    exclusive,
    file_option,
    number,
    run_option,
    whole_number,
)
from swtrace.cli.console import narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import size
from swtrace.cli.ring_folder import FolderOption, folder_to_read
from swtrace.cli.signals import not_ignored
from swtrace.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from swtrace.credentials import Credentials
    from swtrace.observing import Origin, Roster
    from swtrace.observing.events import RingState
    from swtrace.recording.remote import DaemonStream
    from swtrace.recording.tee import Tee
    from swtrace.recording.writer import RecordingWriter

_POLL_S = 0.05
_SHOW_S = 0.5
_LINE_S = 5.0


def record(
    *,
    output: Annotated[
        Path | None,
        file_option("--output", "-o", text="File to write. Default: swtrace-DATE-TIME.swrec in the current folder."),
    ] = None,
    directory: FolderOption = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Record through daemons, one per host, instead of local rings."),
    ] = None,
    ca: CaOption = None,
    user: UserOption = None,
    password_file: PasswordFileOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    run_id: Annotated[str | None, run_option("Record only this run. Default: every run.")] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            help="Stop after this time.",
            metavar="SECONDS",
            parser=number("--duration", 0, of="seconds"),
        ),
    ] = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop when every rank has ended.")] = False,
    max_size: Annotated[
        str | None,
        typer.Option(help="Stop before the files exceed this size, such as 500M or 2G; at least 64K.", metavar="SIZE"),
    ] = None,
    rotate: Annotated[
        str | None,
        typer.Option(
            help="Start a new file (FILE.1, FILE.2, ...) before one exceeds this size; at least 64K.", metavar="SIZE"
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            help="With --rotate: keep only the newest N files.",
            metavar="N",
            parser=whole_number("--keep", 1),
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was recorded as JSON.")] = False,
) -> None:
    """Record every rank of this host, or of several hosts through their daemons, until Ctrl-C.

    Starts with the records that are still in the rings (the files in shared memory to which ranks write), so it can
    record a run that has just ended. If the recorder is killed, the file lacks at most the last half second. If it
    finds no rank, it leaves no file and exits with status 1.

    With several daemons, it holds what it reads in memory until each has named its ranks, because these come first in
    the file. It waits five seconds for a daemon that is silent, and then records the others.
    """
    from swtrace.recording.writer import LEAST_BYTES, RecordingWriter
    from swtrace.trace.tail import allow_open_files

    exclusive({"--dir": directory, "--connect": connect})
    if keep is not None and rotate is None:
        raise CommandError("--keep needs --rotate", ExitCode.USAGE)
    if output is None:
        output = _default_output(run_id)
    if str(output) == "-":
        raise CommandError("a recording cannot be written to stdout; --output must be a file", ExitCode.USAGE)
    allow_open_files()
    where = folder_to_read(directory) if connect is None else connect
    shown = credentials(connect, ca=ca, user=user, password_file=password_file, cert=cert, key=key)
    daemons = [] if connect is None else _daemons(connect, run_id, shown)
    console = narration()
    capture: Capture | None = None
    with _set_aside(output if force else None) as replaced:
        writer = RecordingWriter(
            output,
            overwrite=force,
            part_bytes=None if rotate is None else size(rotate, "--rotate", least=LEAST_BYTES),
            keep_parts=keep,
            max_bytes=None if max_size is None else size(max_size, "--max-size", least=LEAST_BYTES),
        )
        try:
            with writer:
                capture = Capture(_origin(where, daemons, run_id), daemons, writer)
                console.print(f"Recording {where} to {output}", soft_wrap=True, markup=False)
                try:
                    reason = _follow(capture, duration=duration, until_end=until_end, console=console)
                finally:
                    capture.finish()
            _conclude(capture, reason, console, as_json=as_json)
        finally:
            if capture is not None and writer.ranks:
                if output.exists():  # it may have been removed meanwhile
                    replaced()
            elif output.is_file():  # not a device
                output.resolve().unlink()  # so that a retry is not refused


class Capture:
    """A recording in progress."""

    def __init__(self, origin: Origin, daemons: Sequence[DaemonStream], writer: RecordingWriter) -> None:
        """Record what an origin reports; ``daemons`` are its daemons, if any."""
        from swtrace.observing import Roster
        from swtrace.recording.tee import Tee

        self.writer = writer
        self.daemons = daemons
        self._origin = origin
        self.tee: Tee = Tee(origin, writer)
        self.roster: Roster = Roster(self.tee)

    @property
    def rings(self) -> tuple[RingState, ...]:
        """States of all rings."""
        return self.tee.look().rings

    @property
    def awaited(self) -> bool:
        """Whether a daemon has not named its ranks yet."""
        return any(not daemon.reported and daemon.lost is None for daemon in self.daemons)

    def finish(self) -> None:
        """Record what is committed now and the state of the rings, as space permits, and close the recording.

        Raises:
            RecordingError: it cannot be written.
        """
        from swtrace.observing.merged import Merged

        try:
            if isinstance(self._origin, Merged):
                self._origin.release()
            self.tee.finish()
            self.writer.close()
        finally:
            self.roster.close()


def _default_output(run_id: str | None) -> Path:
    """Return a name in the working directory that says when the recording began, and of which run it is, if given."""
    run = f"{re.sub(r'[^A-Za-z0-9._-]', '-', run_id)}-" if run_id is not None else ""
    return Path(f"swtrace-{run}{time.strftime('%Y%m%d-%H%M%S')}.swrec")


def _origin(where: Path | str, daemons: Sequence[DaemonStream], run_id: str | None) -> Origin:
    """Return the origin to record.

    Raises:
        RecordingError: a daemon does not answer, or has no such stream.
    """
    from swtrace.observing import HostRings
    from swtrace.observing.merged import Merged

    for daemon in daemons:
        daemon.connect()
    return Merged(daemons) if daemons else HostRings(Path(where), run_id=run_id)


@contextmanager
def _set_aside(old: Path | None) -> Iterator[Callable[[], None]]:
    """Move a recording aside and yield a function that deletes it. Unless that is called, it is restored at the end."""
    if old is None or not old.is_file():
        yield lambda: None
        return
    _refuse_a_ring(old)
    file = old.resolve()  # a link stays one
    aside = file.with_name(f"{file.name}.before")
    file.replace(aside)
    try:
        yield aside.unlink
    finally:
        if aside.exists():
            aside.replace(file)


def _refuse_a_ring(file: Path) -> None:
    """Refuse to replace a ring that a rank writes.

    Raises:
        CommandError: the file is a ring.
    """
    from swtrace.trace.schema import MAGIC

    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) == MAGIC:
            raise CommandError(f"{file} is a ring, not a recording; --force does not replace rings", ExitCode.USAGE)


def _daemons(connect: str, run_id: str | None, shown: Credentials) -> list[DaemonStream]:
    """Return the daemons to record. Check every address before a file is created.

    Raises:
        CommandError: no address is given.
        SettingsError: an address is invalid.
    """
    from swtrace.http_client import addresses
    from swtrace.recording.remote import DaemonStream

    return [DaemonStream(address, run_id=run_id, again=False, credentials=shown) for address in addresses(connect)]


def _follow(capture: Capture, *, duration: float | None, until_end: bool, console: Console) -> str:
    """Record until a reason to stop occurs, and return it."""
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _frame: stopped.append(received))
        for number in not_ignored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    begun = time.monotonic()
    shown = begun if console.is_terminal else begun - _LINE_S + 1.0
    try:
        with console.status("waiting for ranks") as status:
            while not stopped:
                more = capture.roster.poll()
                now = time.monotonic()
                if duration is not None and now - begun >= duration:
                    return "time is up"
                if capture.writer.full:
                    return "size reached"
                if capture.daemons and not more and all(daemon.lost is not None for daemon in capture.daemons):
                    return "every daemon has gone"
                rings = capture.rings if until_end and not more and not capture.awaited else ()
                if rings and not any(ring.alive or ring.statistics.pending for ring in rings):
                    return "every rank has ended"
                if now - shown >= (_SHOW_S if console.is_terminal else _LINE_S):
                    shown = now
                    status.update(_progress(capture, now - begun))
                    if not console.is_terminal:
                        console.print(_progress(capture, now - begun), soft_wrap=True)
                if not more:
                    time.sleep(_POLL_S)
            return "interrupted"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(capture: Capture, elapsed_s: float) -> str:
    statistics = capture.writer.statistics()
    rings = capture.rings
    facts = capture.roster.ledger.facts()
    ratios = [rank.recent.stall_ratio for series in facts.series for rank in series.ranks]
    stall = max((ratio for ratio in ratios if ratio is not None), default=None)
    lost = sum(ring.statistics.lost for ring in rings)
    alive = sum(ring.alive for ring in rings)
    return (
        f"{elapsed_s:.0f} s: {alive} of {counted(len(rings), 'rank')} alive, {counted(statistics.records, 'record')}, "
        f"{units.size(statistics.bytes)}, {lost} lost, stall {units.ratio(stall)}"
    )


def _conclude(capture: Capture, reason: str, console: Console, *, as_json: bool) -> None:
    statistics = capture.writer.statistics()
    ranks = capture.writer.ranks
    for problem in _problems(capture):
        console.print(problem, markup=False, soft_wrap=True)
    if not ranks:
        raise CommandError(f"{reason}, but no rank was seen and nothing was recorded; `swtrace doctor` may show why")
    console.print(
        f"{reason.capitalize()}. Recorded {counted(statistics.records, 'record')} of {counted(ranks, 'rank')}, "
        f"{units.size(statistics.bytes)} in {counted(statistics.parts, 'file')}.",
        soft_wrap=True,
    )
    if statistics.lost:
        console.print(f"Lost {counted(statistics.lost, 'record')}, overwritten in the rings before being read.")
    if statistics.left_out:
        console.print(f"Left out {counted(statistics.left_out, 'record')} that had been read.")
    if as_json:
        write_json(
            {
                "reason": reason,
                "path": str(capture.writer.path),
                "records": statistics.records,
                "left_out": statistics.left_out,
                "lost": statistics.lost,
                "bytes": statistics.bytes,
                "parts": statistics.parts,
                "ranks": ranks,
            }
        )


def _problems(capture: Capture) -> list[str]:
    """Return what could not be recorded, and why."""
    return [
        *(
            f"{daemon.address}: {daemon.lost or 'it has not answered'}"
            for daemon in capture.daemons
            if daemon.damaged or not daemon.reported
        ),
        *capture.tee.look().problems.values(),
    ]
