"""The ``swtrace`` command: one small module per subcommand.

Three rules hold for all of them. stdout is data, stderr is narration. Importing a subcommand's
module loads nothing heavy, so that ``swtrace --help`` answers at once on a host without torch. What
a user or a peer can cause ends in one readable line and an exit code, never in a traceback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and leave the process with an :class:`~swtrace.cli.exit_codes.ExitCode`."""
    from swtrace.cli.app import app
    from swtrace.cli.exit_codes import exit_code
    from swtrace.errors import SwtraceError

    try:
        app(args=arguments, prog_name="swtrace")
    except SwtraceError as error:
        sys.stderr.write(f"swtrace: {error}\n")
        sys.exit(exit_code(error))
    sys.exit(0)
