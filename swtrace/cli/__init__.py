"""The ``swtrace`` command: one small module per subcommand.

Three rules hold for all of them. stdout carries data, stderr carries narration. Importing a
subcommand's module loads nothing heavy, so ``swtrace --help`` is fast and needs no torch. An error
that a user or a peer can cause ends in one readable line and an exit code, never in a traceback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit with an :class:`~swtrace.cli.exit_codes.ExitCode`."""
    from swtrace.cli.exit_codes import ExitCode, exit_code
    from swtrace.cli.streams import prepare
    from swtrace.errors import SwtraceError

    prepare()
    status: object = ExitCode.SUCCESS
    try:
        from typer import TyperException

        from swtrace.cli.commands import app
        from swtrace.cli.usage import usage_error

        try:
            status = app(args=arguments, prog_name="swtrace", standalone_mode=False)
        except SystemExit as ended:
            status = ended.code
        except TyperException as error:
            raise usage_error(error) from error
        sys.stdout.flush()
    except SwtraceError as error:
        status = exit_code(error)
        if str(error):
            sys.stderr.write(f"swtrace: {error}\n")
    except OSError as error:
        status = ExitCode.FAILED
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"swtrace: {where}{error.strerror or error}\n")
    except KeyboardInterrupt:  # while the commands were imported
        status = ExitCode.INTERRUPTED
        sys.stderr.write("swtrace: interrupted\n")
    sys.exit(status)  # type: ignore[arg-type]
