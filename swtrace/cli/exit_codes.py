"""Exit statuses of ``swtrace``. Scripts rely on these numbers: they are never reused."""

from __future__ import annotations

from enum import IntEnum

from swtrace.errors import PeerLostError, SettingsError, SwtraceError


class ExitCode(IntEnum):
    """Exit status of every subcommand; ``swtrace run`` returns that of its command."""

    SUCCESS = 0
    """The command succeeded."""
    FAILED = 1
    """An error was reported on stderr, or ``doctor`` found something broken."""
    USAGE = 2
    """The command line or a setting is invalid."""
    RANK_LOST = 3
    """A rank died. If its ranks broadcast, that ended its group."""
    OUTPUT_DIFFERS = 4
    """A step's output was not bit-identical to that of unshared weights."""
    FOUND_WARNING = 5
    """``diagnose``: the worst that it found is a warning."""
    FOUND_BAD = 6
    """``diagnose`` found something bad."""
    NOT_EXECUTABLE = 126
    """``swtrace run``: the command exists but cannot be executed."""
    NOT_FOUND = 127
    """``swtrace run``: the command was not found."""
    INTERRUPTED = 130
    """Ctrl-C."""
    TERMINATED = 143
    """SIGTERM."""
    PIPE_CLOSED = 141
    """The reader of stdout closed it, as ``head`` does: 128 + SIGPIPE, as in a shell."""


class CommandError(SwtraceError):
    """A command cannot do what it was asked to do. The message says why, and what to change."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        """Store the exit status with the message."""
        super().__init__(message)
        self.code = code


def exit_code(error: SwtraceError) -> ExitCode:
    """Return the exit status for an error."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, SettingsError):
        return ExitCode.USAGE
    if isinstance(error, PeerLostError):
        return ExitCode.RANK_LOST
    return ExitCode.FAILED
