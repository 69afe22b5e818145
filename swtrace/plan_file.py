"""A plan: the settings that ``swtrace plan`` chose for one series, and what it predicted for them.

``swtrace plan --save FILE`` writes it, and the ranks of a run with ``SWTRACE_PLAN=FILE`` read it, so that readers can
show the prediction beside what is measured. Ranks load this module, so it uses only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from swtrace.errors import SettingsError
from swtrace.version import __version__

FORMAT = 1
"""Version of the file's format. A reader refuses others."""
CONFIDENCE = 0.9
"""Share of outcomes that an :class:`Interval` is made to cover."""
_MAX_BYTES = 1 << 20
_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Interval:
    """A predicted figure, and the range that :data:`CONFIDENCE` of all outcomes fall into."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Return the figure and its range, times a factor above 0."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the prediction is for. A run under other conditions may differ from it."""

    ranks: int
    """Size of the group."""
    stack_layers: int
    """Decoder layers of a rank."""
    layer_bytes: int
    """Bytes of one layer's weight."""
    model: str = ""
    """Empty if unknown."""
    phase: str = ""
    """Phase of the measured steps, such as ``decode``; empty if they had several."""
    tokens: float | None = None
    """Mean number of tokens in a step's batch; None if unknown."""
    scale_compute: float = 1.0
    """Compute was assumed to take this many times as long as measured."""


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan for one series."""

    series: str
    """The linear's path in its layer."""
    start_layer: int
    """First decoder layer of the rank. Pipeline stages have a plan each."""
    settings: Mapping[str, Any]
    """As in ``additional_config["swtrace"]``."""
    step_seconds: Interval
    """Mean time of a step, on the rank with the longest."""
    stall_ratio: Interval
    """Stall as a share of step time, on the most stalled rank."""
    conditions: Conditions
    made_at: str
    """Date and time in UTC, as ISO 8601."""
    swtrace: str = __version__
    """Version of swtrace that made the plan."""

    @property
    def digest(self) -> str:
        """Identifies the plan: two files with the same content have the same digest, whatever their layout."""
        plain = json.dumps(self._to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()[:_DIGEST_CHARACTERS]

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(self._to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan.

        Raises:
            SettingsError: the file cannot be read, or is no plan; the message says why.
        """
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
        try:
            return cls._from_json(text)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, _NotAPlanError) else "it is damaged, or another kind of file"
            raise SettingsError(f"{path} is not a plan: {reason}; {_REMEDY}") from error

    def _to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self), "settings": dict(self.settings)}

    @classmethod
    def _from_json(cls, text: bytes) -> Self:
        if len(text) > _MAX_BYTES:
            raise _NotAPlanError("it is too large")
        fields = json.loads(text)
        version = fields.pop("format")
        if version != FORMAT:
            raise _NotAPlanError(f"its format is {version!r}, and this swtrace reads format {FORMAT}")
        fields["conditions"] = Conditions(**fields["conditions"])
        for name in ("step_seconds", "stall_ratio"):
            fields[name] = Interval(**{key: float(value) for key, value in fields[name].items()})
        made = cls(**fields)
        made._check()
        return made

    def _check(self) -> None:
        """Check the types of what readers show and compare.

        Raises:
            ValueError: one of them is wrong.
        """
        texts = (self.series, self.made_at, self.swtrace, self.conditions.model, self.conditions.phase)
        numbers = (self.start_layer, self.conditions.ranks, self.conditions.stack_layers, self.conditions.layer_bytes)
        figures = (self.step_seconds, self.stall_ratio)
        sound = (
            bool(self.series)
            and all(isinstance(text, str) and (text.isprintable() or not text) for text in texts)
            and all(type(number) is int and number >= 0 for number in numbers)
            and isinstance(self.settings, Mapping)
            and all(0 <= each.low <= each.value <= each.high < math.inf for each in figures)
        )
        if not sound:
            raise ValueError


class _NotAPlanError(ValueError):
    """A file is not a plan, for a reason worth saying."""


_REMEDY = "write one with `swtrace plan --save FILE`"
