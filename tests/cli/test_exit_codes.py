"""Every kind of error has an exit code, and every exit code has a meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import swtrace as package
from swtrace.cli.exit_codes import CommandError, ExitCode, exit_code
from swtrace.errors import PeerLostError, RingFormatError, SettingsError


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
