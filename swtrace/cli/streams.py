"""stdout and stderr on a full disk, a closed pipe or a terminal without UTF-8.

The data that a command prints must arrive, so a failed write to stdout is an error. Narration is for people who
may have left, so a failed write to stderr is ignored.
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
    "●": "o",
    "├": "[",
    "┤": "]",
    "┊": ":",
    "┴": "+",
    "└": "+",
    "┘": "+",
    "▶": ">",
    "\u00d7": "x",
    "µ": "u",
    "—": "-",
    "\u2013": "-",
}
"""Replacements for characters that the terminal's encoding lacks; `?` for all others."""
_PLAIN_ERRORS = "swtrace.plain"


class OutputError(CommandError):
    """stdout cannot be written to. The message is empty if the reader closed the pipe."""


def prepare() -> None:
    """Replace ``sys.stdout`` by a stream whose errors are one line, and ``sys.stderr`` by one that never fails."""
    codecs.register_error(_PLAIN_ERRORS, _plain)
    _open_closed_descriptors()
    sys.stdout = _stream(sys.stdout, 1, _Data)
    sys.stderr = _stream(sys.stderr, 2, _Narration)
    # Textual writes to the original stderr.
    if isinstance(sys.__stderr__, io.TextIOWrapper):
        sys.__stderr__.reconfigure(errors=_PLAIN_ERRORS)


class _Data(io.FileIO):
    """Descriptor 1. After the first failure it discards the rest, which the interpreter flushes at exit."""

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
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error


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
    """Occupy the descriptors of closed standard streams (``>&-``), so that no file opened later takes them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Deliberately opened in the wrong mode: writing to a closed stdout must fail, not vanish.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end
