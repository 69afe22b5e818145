"""The values that ``swtrace plan`` is asked about, from the texts of its options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from swtrace.cli.recorded import size
from swtrace.errors import SettingsError
from swtrace.settings import TRANSPORTS, WINDOWS, setting

if TYPE_CHECKING:
    from swtrace.ledger.planning.pareto import Budget
    from swtrace.share import Share

_T = TypeVar("_T")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT]?)(i?)(B|bit)/s", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_BITS = 8


@dataclass(frozen=True, slots=True)
class Values:
    """The values to try of each setting. None: the usual ones."""

    shares: tuple[Share, ...] | None
    prefetch_steps: tuple[int, ...] | None
    transports: tuple[str, ...] | None
    windows: tuple[str, ...] | None


def chosen_values(
    shares: Sequence[str] | None, prefetch_steps: str | None, transports: str | None, windows: str | None
) -> Values:
    """Return the values of the options that say what to try.

    Raises:
        SettingsError: one of them cannot be used.
    """
    return Values(
        shares=tuple(setting("share", text, "--share") for text in shares) if shares else None,
        prefetch_steps=_listed(prefetch_steps, lambda text: int(setting("prefetch_step", text, "--prefetch-step"))),
        transports=_listed(transports, lambda text: _one_of(text, "--transport", TRANSPORTS)),
        windows=_listed(windows, lambda text: _one_of(text, "--windows", WINDOWS)),
    )


def budget(max_stall: str | None, memory: str | None) -> Budget:
    """Return the limits; without any, the usual one on stall.

    Raises:
        SettingsError: one of them cannot be used.
    """
    from swtrace.diagnosis.finding import HIDDEN_BELOW
    from swtrace.ledger.planning.pareto import Budget

    stall = None if max_stall is None else percent(max_stall, "--max-stall")
    if max_stall is None and memory is None:
        stall = HIDDEN_BELOW
    return Budget(stall, None if memory is None else size(memory, "--memory"))


def percent(text: str, option: str) -> float:
    """Return a share that is given in percent: ``2%``.

    Raises:
        SettingsError: the text is no percentage from 0 to 100.
    """
    found = _PERCENT.fullmatch(text.strip())
    value = float(found[1]) / 100 if found else math.inf
    if value > 1:
        raise SettingsError.of(option, text, "a percentage from 0% to 100%, such as 2%")
    return value


def bandwidth(text: str) -> float:
    """Return bytes per second: ``12GB/s``, ``800 MiB/s``, ``100Gbit/s``.

    Raises:
        SettingsError: the text is no rate.
    """
    found = _RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise SettingsError.of("--bandwidth", text, "a rate, such as 12GB/s, 800MiB/s or 100Gbit/s")
    factor: float = (1024.0 if found[3] else 1000.0) ** _POWERS[found[2].upper()]
    return float(found[1]) * factor / (_BITS if found[4] == "bit" else 1)


def _listed(text: str | None, read: Callable[[str], _T]) -> tuple[_T, ...] | None:
    return None if text is None else tuple(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def _one_of(text: str, option: str, choices: Sequence[str]) -> str:
    known = [choice for choice in choices if choice != "auto"]
    if text not in known:
        raise SettingsError.of(option, text, f"one or more of: {', '.join(known)}")
    return text
