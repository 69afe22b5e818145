"""The command line as people meet it: help, version, and errors in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

import swtrace as package
from swtrace.cli import main
from swtrace.cli.commands import app
from swtrace.cli.exit_codes import CommandError, ExitCode, exit_code
from swtrace.errors import PeerLostError, RingFormatError, SettingsError
from tests.cli.conftest import Swtrace

COMMANDS = get_group(app).commands


def help_text(*arguments: str, columns: int = 120) -> str:
    """Return what ``--help`` prints, as plain words."""
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == 0
    return re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def test_help_names_every_subcommand() -> None:
    """Someone who types ``swtrace --help`` sees where to begin."""
    text = help_text()
    for name in ("demo", "run", "daemon", "doctor"):
        assert f" {name} " in text


@pytest.mark.parametrize(
    "option", ["--ranks", "--layers", "--mib", "--compute-ms", "--prefetch-step", "--windows", "--steps", "--duration"]
)
def test_demo_help_names_every_dial(option: str) -> None:
    """Every dial of the demo can be found without reading the code."""
    assert option in help_text("demo")


def test_demo_help_names_every_scenario() -> None:
    """The scenarios stand in the help of the option that takes them."""
    assert "hidden, stalled, straggler or jitter" in help_text("demo")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("dashboards", "export")])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_no_types_and_cuts_nothing_off(command: tuple[str, ...], columns: int) -> None:
    """Help has words for what a value is, not Python's types, and every word is whole."""
    text = help_text(*command, columns=columns)
    assert re.findall(r"<\w+|[{}…]", text) == []


def test_version_is_data(swtrace: Swtrace) -> None:
    """``--version`` prints one line to stdout."""
    assert swtrace("--version").stdout == f"swtrace {package.__version__}\n"


def test_an_error_is_one_line_and_a_code(swtrace: Swtrace) -> None:
    """What a user got wrong ends in one line on stderr that names it, with no traceback."""
    result = swtrace("demo", "--ranks", "1")
    assert result.returncode == ExitCode.USAGE
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["swtrace: --ranks='1': must be a whole number from 2 to 64"]


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
        (["top", "--view", "x"], "--view='x': must be one of: overview, heatmap, timeline, windows, verdict"),
        (["top", "--wait", "inf"], "--wait='inf': must be a number of seconds, at least 0"),
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no", ExitCode.NOT_FOUND), ExitCode.NOT_FOUND),
        (SettingsError("no"), ExitCode.USAGE),
        (PeerLostError("no"), ExitCode.RANK_LOST),
        (RingFormatError("no"), ExitCode.FAILED),
    ],
)
def test_every_kind_of_error_has_its_code(error: Exception, code: ExitCode) -> None:
    """Scripts can tell a lost rank from a wrong option."""
    assert isinstance(error, package.errors.SwtraceError)
    assert exit_code(error) is code


def test_every_exit_code_says_what_it_means() -> None:
    """Each member of ``ExitCode`` is followed by a docstring."""
    source = Path(package.__file__).with_name("cli") / "exit_codes.py"
    members = re.findall(r'^    [A-Z_]+ = \d+\n    """', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(members) == len(ExitCode)
