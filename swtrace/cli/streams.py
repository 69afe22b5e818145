"""stdout and stderr, whatever they are connected to: a full disk, a pipe that closed, a terminal without UTF-8.

What a command was asked to print must arrive, so stdout that cannot be written to is an error. Narration is for
people who may have left: stderr that cannot be written to stops nobody.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from swtrace.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PLAIN = {
    "•": "*",
    "·": "-",
    "…": "...",
    "→": "->",
    "─": "-",
    "━": "=",
    "│": "|",
    "█": "#",
    "▌": "#",
    "░": ".",
    "\u00d7": "x",
    "µ": "u",
    "—": "-",
    "\u2013": "-",
}
"""What stands for a character where the terminal's encoding has none; `?` for all others."""
_PLAIN_ERRORS = "swtrace.plain"


class OutputError(CommandError):
    """stdout cannot be written to. No message: the reader has closed its end and wants no more."""


def prepare() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that fail in one line, or not at all."""
    codecs.register_error(_PLAIN_ERRORS, _plain)
    _open_closed_descriptors()
    sys.stdout = _stream(sys.stdout, 1, _Data)
    sys.stderr = _stream(sys.stderr, 2, _Narration)
    # Textual writes to the original one.
    if isinstance(sys.__stderr__, io.TextIOWrapper):
        sys.__stderr__.reconfigure(errors=_PLAIN_ERRORS)


class _Data(io.FileIO):
    """Descriptor 1. After the first failure it swallows what is left, which the interpreter flushes at its end."""

    _failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError as error:
            self._failed = True
            raise OutputError("", ExitCode.PIPE_CLOSED) from error
        except OSError as error:
            self._failed = True
            raise OutputError(f"stdout cannot be written to: {error.strerror}") from error


class _Narration(io.FileIO):
    """Descriptor 2."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _stream(before: TextIO | None, descriptor: int, kind: type[io.FileIO]) -> TextIO:
    raw = kind(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", "utf-8"),
        errors=_PLAIN_ERRORS,
        line_buffering=descriptor == 2 or getattr(before, "line_buffering", False),  # noqa: PLR2004 (stderr)
        write_through=getattr(before, "write_through", False),
    )


def _open_closed_descriptors() -> None:
    """Let no file that is opened later take the place of a standard stream that was closed (``>&-``)."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Opened the wrong way round on purpose: what is written to a closed stdout is an error, not lost.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end
