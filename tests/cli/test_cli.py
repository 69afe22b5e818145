"""The ``swtrace`` command: an error ends in one line and an exit code."""

from __future__ import annotations

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import Swtrace


def test_an_error_is_one_line_and_a_code(swtrace: Swtrace) -> None:
    """What a user got wrong ends in one line on stderr that names it, with no traceback."""
    result = swtrace("demo", "--ranks", "1")
    assert result.returncode == ExitCode.USAGE
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["swtrace: --ranks='1': must be a whole number from 2 to 64"]


def test_an_unknown_option_is_a_usage_error(swtrace: Swtrace) -> None:
    """The parser's own errors have the status that this project's have."""
    assert swtrace("demo", "--rank", "2").returncode == ExitCode.USAGE
