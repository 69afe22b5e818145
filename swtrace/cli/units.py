"""Numbers as people read them. A dash stands for what is not known."""

from __future__ import annotations

UNKNOWN = "-"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_BYTES_PER_UNIT = 1024


def seconds(value: float | None) -> str:
    """Return a duration with three digits and the unit that suits it: ``1.25 ms``."""
    if value is None:
        return UNKNOWN
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if abs(value) < limit:
            return f"{_three_digits(value * factor)} {unit}"
    return f"{_three_digits(value)} s"


def ratio(value: float | None) -> str:
    """Return a ratio as per cent, one digit behind the point."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def size(value: float | None) -> str:
    """Return a number of bytes in binary units: ``1.00 MiB``."""
    if value is None:
        return UNKNOWN
    for unit in _BYTE_UNITS[:-1]:
        if abs(value) < _BYTES_PER_UNIT:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= _BYTES_PER_UNIT
    return f"{_three_digits(value)} {_BYTE_UNITS[-1]}"


def bandwidth(value: float | None) -> str:
    """Return bytes per second."""
    return UNKNOWN if value is None else f"{size(value)}/s"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.2f}" if magnitude < 9.995 else f"{value:.1f}" if magnitude < 99.95 else f"{value:.0f}"  # noqa: PLR2004
