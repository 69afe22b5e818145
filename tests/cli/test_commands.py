"""The command line as people meet it: help and version."""

from __future__ import annotations

import swtrace as package
from tests.support.commands import Swtrace, help_text


def test_help_names_every_subcommand() -> None:
    """Someone who types ``swtrace --help`` sees where to begin."""
    text = help_text()
    for name in ("demo", "run", "daemon", "doctor"):
        assert f" {name} " in text


def test_version_is_data(swtrace: Swtrace) -> None:
    """``--version`` prints one line to stdout."""
    assert swtrace("--version").stdout == f"swtrace {package.__version__}\n"
