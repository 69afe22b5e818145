"""``swtrace replay FILE``: a recorded run in the terminal, played at any speed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from swtrace.cli.exit_codes import CommandError
from swtrace.cli.recorded import Files, Salvage, opened


def replay(files: Files, *, salvage: Salvage = False) -> None:
    """Play a recording in the terminal, with the views of `swtrace top`.

    Space pauses, n goes on by one step, ctrl with left and right seeks by 5 s, ctrl with up and down changes the
    speed, ctrl with home and end goes to the start and the end. `swtrace stats` prints what it amounts to.
    """
    if not sys.stdout.isatty() or not sys.stdin.isatty():
        raise CommandError("swtrace replay needs a terminal; swtrace stats prints what a recording amounts to")
    opened(files, salvage=salvage).close()
    from swtrace_tui.preferences import default_path, load
    from swtrace_tui.replay_app import ReplayApp

    path = Path(os.environ.get("SWTRACE_TOP_CONFIG") or default_path())
    app = ReplayApp(files, configuration=load(path), salvage=salvage)
    app.run()
    raise typer.Exit(app.return_code or 0)
