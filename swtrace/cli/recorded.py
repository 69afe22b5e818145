"""Options and helpers of the commands that read recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import not_empty, whole_number
from swtrace.errors import SettingsError
from swtrace.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from swtrace.recording import Recording

Files = Annotated[
    list[Path],
    typer.Argument(
        help="A recording, or all parts of a rotated one.",
        metavar="FILE",
        show_default=False,
        parser=not_empty("FILE", Path),
    ),
]
FilesOrRings = Annotated[
    list[Path] | None,
    typer.Argument(
        help="A recording, or all parts of a rotated one. Default: the rings of this host.",
        metavar="[FILE]",
        show_default=False,
        parser=not_empty("FILE", Path),
    ),
]
Salvage = Annotated[bool, typer.Option("--salvage", help="Skip damaged parts of a recording, and count them.")]


Steps = Annotated[
    str | None, typer.Option("--steps", help="Only steps with these numbers: 100:200, 100: or :200.", metavar="FROM:TO")
]
Warmup = Annotated[
    int, typer.Option("--warmup", help="Skip the first N steps.", metavar="N", parser=whole_number("--warmup", 0))
]
WARMUP = 3
"""The default of ``swtrace diff``."""


def step_range(text: str | None) -> slice | None:
    """Return the steps of ``FROM:TO``.

    Raises:
        SettingsError: the text is invalid or selects no step.
    """
    if text is None:
        return None
    first, colon, last = (part.strip() for part in text.partition(":"))
    if not colon or not all(part.isdecimal() or not part for part in (first, last)):
        raise SettingsError.of("--steps", text, "FROM:TO, such as 100:200, 100: or :200")
    wanted = slice(int(first or 0), int(last) if last else None)
    if wanted.stop is not None and wanted.stop <= wanted.start:
        raise SettingsError.of("--steps", text, "FROM:TO with TO greater than FROM")
    return wanted


def opened(paths: Sequence[Path], *, salvage: bool) -> Recording:
    """Open a recording.

    Raises:
        RecordingFormatError: it cannot be read; the message says why.
    """
    from swtrace.recording import Recording

    return Recording.open(paths, salvage=salvage)


def print_missing(recording: Recording, console: Console) -> None:
    """Print what is missing from the recording, if anything."""
    for sentence in recording.missing().sentences:
        console.print(sentence, markup=False, soft_wrap=True)


def size(text: str, option: str, *, least: int = 1) -> int:
    """Return a size in bytes: ``500M``, ``2GiB``, ``1000``.

    Raises:
        SettingsError: the text is no size, or it is smaller than ``least``.
    """
    number = text.strip().rstrip("iB")
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(number[-1:].upper(), 1)
    try:
        value = float(number[:-1] if factor > 1 else number) * factor
    except ValueError:
        value = 0.0
    if not 1 <= value < 1 << 60:
        raise SettingsError.of(option, text, "a size, such as 500M or 2G")
    if value < least:
        raise SettingsError.of(option, text, f"at least {least // 1024}K")
    return int(value)


def described(recording: Recording, ranks: int) -> str:
    """Return a short description of a recording."""
    return f"{counted(recording.records, 'record')} of {counted(ranks, 'rank')}, {units.size(recording.size)}"
