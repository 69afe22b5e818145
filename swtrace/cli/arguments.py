"""Options and checks that several commands share."""

from __future__ import annotations

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swtrace.credentials import Credentials

_Value = TypeVar("_Value", str, Path)
_Word = TypeVar("_Word", bound=StrEnum)
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
            raise SettingsError(f"{option}={str(text)!r}: must not be empty")
        return kind(text)

    return parse


def whole_number(option: str, low: int, high: int | None = None) -> Callable[[str | int], int]:
    """Return a parser of whole numbers from ``low`` to ``high``."""
    must_be = f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise SettingsError.of(option, text, must_be)
        return value

    return parse


def number(option: str, low: float, high: float | None = None, *, of: str = "") -> Callable[[str | float], float]:
    """Return a parser of finite numbers from ``low`` to ``high``; ``of`` names their unit, such as ``seconds``."""
    must_be = f"a number of {of}" if of else "a number"
    must_be += f", at least {low:g}" if high is None else f" from {low:g} to {high:g}"

    def parse(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (high is not None and value > high):
            raise SettingsError.of(option, text, must_be)
        return value

    return parse


def choice_option(*names: str, kind: type[_Word], metavar: str, text: str, panel: str | None = None) -> Any:
    """Return an option that takes a word of ``kind``; its help is ``text`` and the words."""
    *others, last = kind

    def parse(word: str) -> _Word:
        try:
            return kind(word)
        except ValueError:
            raise SettingsError.of(names[0], word, f"one of: {', '.join(kind)}") from None

    return typer.Option(
        *names,
        help=f"{text}: {', '.join(others)} or {last}.",
        metavar=metavar,
        parser=parse,
        autocompletion=lambda: list(kind),
        rich_help_panel=panel,
    )


def phase_option(text: str) -> Any:
    """Return the option ``--phase`` with ``text`` as its help."""
    return choice_option("--phase", kind=PhaseName, metavar="PHASE", text=text)


def run_option(text: str) -> Any:
    """Return the option ``--run`` with ``text`` as its help."""
    return typer.Option("--run", help=text, metavar="ID", parser=not_empty("--run", str))


def wait_option(text: str) -> Any:
    """Return the option ``--wait`` with ``text`` as its help."""
    return typer.Option("--wait", metavar="SECONDS", help=text, parser=number("--wait", 0, of="seconds"))


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


_CONNECTED = "To sign in to daemons"


def _credential(option: str, text: str) -> Any:
    return typer.Option(option, help=text, metavar="FILE", parser=not_empty(option, Path), rich_help_panel=_CONNECTED)


CaOption = Annotated[
    Path | None, _credential("--ca", "CA certificates to trust, instead of the system's. Default: `SWTRACE_CA`.")
]
UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        help="User to sign in as. Default: `SWTRACE_USER`.",
        metavar="NAME",
        parser=not_empty("--user", str),
        rich_help_panel=_CONNECTED,
    ),
]
PasswordFileOption = Annotated[
    Path | None, _credential("--password-file", "File with that user's password. Default: `SWTRACE_PASSWORD_FILE`.")
]
CertOption = Annotated[Path | None, _credential("--cert", "Client certificate to show. Default: `SWTRACE_CERT`.")]
KeyOption = Annotated[Path | None, _credential("--key", "Its private key, if in another file. Default: `SWTRACE_KEY`.")]


def credentials(daemons: object, option: str = "--connect", **options: str | Path | None) -> Credentials:
    """Return what to show to ``daemons``, the value of ``option``, from these options and the environment.

    Raises:
        CommandError: an option is given, but no daemons.
        SettingsError: a file cannot be used, or a part is missing.
    """
    from swtrace.credentials import ANONYMOUS, Credentials

    if daemons is not None:
        return Credentials.from_environment(os.environ, **options)
    for name, value in options.items():
        if value is not None:
            raise CommandError(f"--{name.replace('_', '-')} needs {option}", ExitCode.USAGE)
    return ANONYMOUS


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
