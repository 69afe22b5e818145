"""Help shows no Python types, and everything that the parser refuses is one line."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import termios
from pathlib import Path

import pytest
from typer.main import get_group

from swtrace.cli import main
from swtrace.cli.commands import app
from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import StartSwtrace, help_text
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings

COMMANDS = get_group(app).commands


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("dashboards", "export")])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_no_types_and_cuts_nothing_off(command: tuple[str, ...], columns: int) -> None:
    """Help has words for what a value is, not Python's types, and every word is whole."""
    text = help_text(*command, columns=columns)
    assert re.findall(r"<\w+|[{}…]", text) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no such command 'nope'; see swtrace --help"),
        (["dashbords"], "no such command 'dashbords'. Did you mean 'dashboards'? see swtrace --help"),
        (["--nope"], "no such option: --nope; see swtrace --help"),
        (["demo", "--rank", "2"], "no such option: --rank (Possible options: --duration, --ranks); see swtrace demo"),
        (["demo", "--ranks"], "option '--ranks' requires an argument"),
        (["demo", "--json=1"], "option '--json' does not take a value; see swtrace demo --help"),
        (["demo", "--layers", "2", "--prefetch-step", "1"], "--prefetch-step='1': must be 0 with --layers 2"),
        (["demo-vllm", "--hidden", "100"], "--hidden='100': must be a whole number from 128 to 1024"),
        (["demo-vllm", "--hidden", "500"], "--hidden='500': must be a multiple of 128"),
        (["demo-vllm", "--prefetch-step", "11"], "--prefetch-step='11': must be at most 10 with --layers 12"),
        (["record", "--dir", "/dev/null"], "--dir='/dev/null': must be a folder"),
        (["dashboards", "export", ""], "DIR='': must not be empty"),
        (["demo", "extra"], "got unexpected extra argument(s) (extra); see swtrace demo --help"),
        (["stats"], "missing argument 'FILE'; see swtrace stats --help"),
        (["run"], "missing argument 'COMMAND'; see swtrace run --help"),
        (["export", "x.swrec"], "missing option '--format' / '-f'. Choose from: perfetto, otlp, parquet, csv; see"),
        (["dashboards", "nope"], "no such command 'nope'; see swtrace dashboards --help"),
        (["demo", "--ranks", "65"], "--ranks='65': must be a whole number from 2 to 64"),
        (["demo", "--layers", "x"], "--layers='x': must be a whole number from 2 to 4096"),
        (["demo", "--layers", "9", "--prefetch-step", "8"], "--prefetch-step='8': must be a whole number from 0 to 7"),
        (["demo", "--mib", "0"], "--mib='0': must be a number from 0.002 to 4096"),
        (["demo", "--compute-ms", "-1"], "--compute-ms='-1': must be a number from 0 to 60000"),
        (["demo", "--steps", "0"], "--steps='0': must be a whole number, at least 1"),
        (["demo", "--duration", "nan"], "--duration='nan': must be a number, at least 0"),
        (["demo", "--seed", "1e9"], "--seed='1e9': must be a whole number from 0 to 2147483647"),
        (["demo", "--windows", "foo"], "--windows='foo': must be one of: auto, rolling, static"),
        (["demo", "--scenario", ""], "--scenario='': must be one of: hidden, stalled, straggler, jitter"),
        (["run", "--prefetch-step", "x", "true"], "--prefetch-step='x': must be a whole number from 0 to 4094"),
        (["run", "--group", "x", "true"], "--group='x': must be one of: auto, tp, dp, world"),
        (["top", "--rank", "-1"], "--rank='-1': must be a whole number, at least 0"),
        (["top", "--view", "x"], "--view='x': must be one of: overview, heatmap, timeline, windows, diagnosis"),
        (["top", "--wait", "inf"], "--wait='inf': must be a number of seconds, at least 0"),
        (["top", "--interval", "0"], "--interval='0': must be a number of seconds from 0.05 to 60"),
        (["record", "--duration", "1s"], "--duration='1s': must be a number of seconds, at least 0"),
        (["record", "--keep", "0"], "--keep='0': must be a whole number, at least 1"),
        (["stats", "--warmup", "1.5", "x"], "--warmup='1.5': must be a whole number, at least 0"),
        (["diff", "--phase", "x", "a", "b"], "--phase='x': must be one of: prefill, decode, mixed, dummy, other"),
        (["export", "-f", "png", "x"], "--format='png': must be one of: perfetto, otlp, parquet, csv"),
        (["export", "-f", "otlp", "--sample", "2", "x"], "--sample='2': must be a number from 0 to 1"),
    ],
)
def test_a_bad_command_line_is_one_line(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the parser refuses is named as typed, with what it must be or where to read it; nothing starts."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output, errors = capfd.readouterr()
    assert (ended.value.code, output) == (ExitCode.USAGE, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"swtrace: {said}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_is_one_line(
    start_swtrace: StartSwtrace, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C ends a command within its work in one line and status 130, SIGTERM in silence; neither in a traceback."""
    run = RecordedRun(tmp_path / "rings")
    run.write(50)
    run.close()
    recording = tmp_path / "run.swrec"
    record_rings(tmp_path / "rings", recording)
    fifo = tmp_path / "table.csv"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)  # less than the table: the export has to wait
    try:
        process = start_swtrace("export", "-f", "csv", "-o", str(fifo), str(recording))
        eventually(lambda: unread(reading) == 4096, "the pipe is full")
        process.send_signal(number)
        out, err = process.communicate(timeout=patience())
    finally:
        os.close(reading)
    assert (process.returncode, out) == (code, "")
    assert err == ("swtrace: interrupted\n" if number is signal.SIGINT else "")


def unread(pipe: int) -> int:
    """Return how many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
