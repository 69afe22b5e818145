"""``swtrace doctor``: people read what is broken, and how to fix it."""

from __future__ import annotations

from pathlib import Path

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import Swtrace


def test_the_text_says_how_to_fix_it(swtrace: Swtrace, rings: Path) -> None:
    """People read the same findings, each broken one with what to do."""
    rings.write_text("not a folder")
    result = swtrace("doctor", "--quick")
    assert result.returncode == ExitCode.FAILED
    assert "-> set SWTRACE_DIR" in result.stdout
    assert result.stdout.endswith("1 broken.\n")
