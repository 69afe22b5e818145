"""What the exit status of ``swtrace`` means. Scripts rely on these numbers: they are never re-used."""

from __future__ import annotations

from enum import IntEnum

from swtrace.errors import PeerLostError, SettingsError, SwtraceError


class ExitCode(IntEnum):
    """Exit status of every subcommand; ``swtrace run`` hands through its command's own."""

    SUCCESS = 0
    """All went well."""
    FAILED = 1
    """An error was named on stderr, or ``doctor`` found something broken."""
    USAGE = 2
    """The command line or a setting cannot be used as it is."""
    RANK_LOST = 3
    """A rank died, and with it its group."""
    OUTPUT_DIFFERS = 4
    """A step's output was not bit-identical to the one with resident weights."""
    NOT_EXECUTABLE = 126
    """``swtrace run``: the command exists and cannot be executed."""
    NOT_FOUND = 127
    """``swtrace run``: there is no such command."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE_CLOSED = 141
    """Whoever read stdout closed it, as ``head`` does: 128 + SIGPIPE, as a shell shows it."""


class CommandError(SwtraceError):
    """A command cannot do what it was asked. The message says why, and what to change."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        """Carry the exit status beside the message."""
        super().__init__(message)
        self.code = code


def exit_code(error: SwtraceError) -> ExitCode:
    """Return the exit status that belongs to an error."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, SettingsError):
        return ExitCode.USAGE
    if isinstance(error, PeerLostError):
        return ExitCode.RANK_LOST
    return ExitCode.FAILED
