"""Options and checks that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from swtrace.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_Value = TypeVar("_Value", str, Path)
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


class PhaseName(StrEnum):
    """A phase of a step."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    DUMMY = "dummy"
    OTHER = "other"


def not_empty(option: str, kind: type[_Value]) -> Callable[[str | Path], _Value]:
    """Return a parser that refuses an empty value: ``Path("")`` would be the working directory."""

    def parse(text: str | Path) -> _Value:
        if not str(text).strip():
            raise CommandError(f"{option}={str(text)!r}: must not be empty", ExitCode.USAGE)
        return kind(text)

    return parse


def run_option(text: str) -> Any:
    """Return the option ``--run`` with ``text`` as its help."""
    return typer.Option("--run", help=text, metavar="ID", parser=not_empty("--run", str))


def file_option(*names: str, text: str) -> Any:
    """Return an option that names a file, with ``text`` as its help."""
    return typer.Option(*names, help=text, metavar="FILE", parser=not_empty(names[0], Path))


def exclusive(options: Mapping[str, object]) -> None:
    """Refuse more than one of several options.

    Raises:
        CommandError: two of them are given.
    """
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise CommandError(f"{' and '.join(given)} cannot be used together", ExitCode.USAGE)


def addresses(connect: str) -> list[str]:
    """Return the addresses that ``--connect`` lists.

    Raises:
        CommandError: the list is empty.
    """
    found = [each.strip() for each in connect.split(",") if each.strip()]
    if not found:
        raise CommandError(
            f"--connect={connect!r}: must be HOST:PORT, or a comma-separated list of them", ExitCode.USAGE
        )
    return found


def refuse_own_input(output: Path, files: Sequence[Path]) -> None:
    """Refuse an output that is one of the input files, even under another name.

    Raises:
        CommandError: it is an input file.
    """
    for file in files:
        if output.exists() and file.exists() and output.samefile(file):
            raise CommandError(f"--output {output} is an input file ({file}); choose another file", ExitCode.USAGE)


def refuse_existing(output: Path, *, force: bool) -> None:
    """Refuse an output file that exists, unless it may be replaced. Devices and pipes are written to.

    Raises:
        CommandError: it exists.
    """
    if output.is_file() and not force:
        raise CommandError(f"{output} already exists; use --force to replace it")
