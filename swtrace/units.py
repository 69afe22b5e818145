"""Formats of numbers, the same in every command, view and report. A dash means unknown."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

UNKNOWN = "-"

_TWO_DIGITS, _ONE_DIGIT = 9.995, 99.95
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"))
_SHORT_NS = 100_000
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_KILO = 1024
_THOUSAND = 1000
_HOSTS = 8


def duration(nanoseconds: float | None) -> str:
    """Return a duration with three digits: ``1.25 ms``."""
    if nanoseconds is None:
        return UNKNOWN
    magnitude = abs(nanoseconds)
    if not magnitude:
        return "0"
    for factor, unit in _UNITS:
        if magnitude >= 0.9995 * factor:
            return f"{_digits(nanoseconds / factor)} {unit}"
    return f"{nanoseconds:.0f} ns"


def seconds(value: float | None) -> str:
    """Return a duration given in seconds."""
    return UNKNOWN if value is None else duration(1e9 * value)


def milliseconds(nanoseconds: float) -> str:
    """Return a duration for a sentence, in ms or us with three digits, so that two are easy to compare."""
    if not nanoseconds:
        return "0"
    if abs(nanoseconds) >= _SHORT_NS:
        return f"{_digits(nanoseconds / 1e6)} ms"
    return f"{_digits(nanoseconds / 1e3)} us"


def age(nanoseconds: int | None) -> str:
    """Return a coarse age: ``0.4 s``, ``12 s``, ``3 min``."""
    if nanoseconds is None or nanoseconds < 0:
        return UNKNOWN
    seconds = nanoseconds / 1e9
    if seconds < 0.1:  # noqa: PLR2004 - below a tenth of a second, use milliseconds
        return duration(nanoseconds)
    if seconds < 10:  # noqa: PLR2004 - as a person would say it
        return f"{seconds:.1f} s"
    if seconds < 120:  # noqa: PLR2004 - as above
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004 - as above


def ratio(value: float | None) -> str:
    """Return a ratio as a percentage with one decimal: ``30.8 %``."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def rate(value: float | None) -> str:
    """Return a rate per second with three digits."""
    return UNKNOWN if value is None else _digits(value)


def size(value: float | None) -> str:
    """Return bytes: ``1.09 GiB``."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in _BYTES[:-1]:
        if abs(amount) < _KILO:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{_digits(amount)} {unit}"
        amount /= _KILO
    return f"{_digits(amount)} {_BYTES[-1]}"


def ranged(values: tuple[float, float, float], text: Callable[[float], str]) -> str:
    """Return a figure with the ends of its range: ``48.1 ms (47.2 to 49.3)``. A common unit is written once."""
    texts = [text(value) for value in values]
    if len({each.partition(" ")[2] for each in texts}) == 1:
        texts[1:] = [each.partition(" ")[0] for each in texts[1:]]
    return "{} ({} to {})".format(*texts)


def bandwidth(value: float | None) -> str:
    """Return bytes per second."""
    return UNKNOWN if value is None else f"{size(value)}/s"


def count(value: int) -> str:
    """Return a count in at most five characters: ``12.3k``."""
    amount, suffix = float(value), ""
    for suffix in ("", "k", "M", "G"):  # noqa: B007 - the last one is used below
        if abs(amount) < _THOUSAND:
            break
        amount /= _THOUSAND
    return f"{value}" if not suffix else f"{_digits(amount)}{suffix}"


def counted(number: int | str, noun: str) -> str:
    """Return a count with its noun: ``1 step``, ``2 steps``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(noun: str, which: Collection[object]) -> str:
    """Return what a noun refers to, at least one: ``rank 1``, ``ranks 1, 2``."""
    return f"{noun}{'' if len(which) == 1 else 's'} {', '.join(map(str, which))}"


def ranges(numbers: Collection[int]) -> str:
    """Return numbers in their given order, with consecutive ones as a range: ``0-3,8``."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def placed(hosts: Mapping[str, Collection[int]]) -> str:
    """Return which ranks are on which host, of the first eight hosts: ``ranks 0-3 on gpu-a, 4-7 on gpu-b``."""
    shown = [f"{ranges(ranks)} on {host}" for host, ranks in list(hosts.items())[:_HOSTS]]
    more = f" and {counted(len(hosts) - _HOSTS, 'more host')}" if len(hosts) > _HOSTS else ""
    return f"ranks {', '.join(shown)}{more}"


def words(name: str) -> str:
    """Return a name for scripts as words: ``entry skew`` for ``entry_skew``."""
    return name.replace("_", " ")


def _digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.{2 if magnitude < _TWO_DIGITS else 1 if magnitude < _ONE_DIGIT else 0}f}"
