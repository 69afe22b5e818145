"""A finding: one sentence about a series or a host, with its evidence, what to do, and what a repair would save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

from swtrace.ledger.planning.repair import Repair, Saving

HIDDEN_BELOW = 0.05
"""Stall ratio below which the broadcasts count as hidden behind compute."""
STALLED_ABOVE = 0.30
"""Stall ratio above which the broadcasts count as not hidden: sharing costs more time than it is worth."""
WORTH = 0.02
"""A cost is a warning if a repair saves at least this share of step time for sure: less is not worth a call."""
NS_PER_S = 1_000_000_000


class Level(IntEnum):
    """Severity of a finding, in ascending order."""

    GOOD = 0
    NOTE = 1
    WARNING = 2
    BAD = 3

    @property
    def word(self) -> str:
        """Name of the level in JSON documents, metrics and style sheets."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, with what proves it, what to do, and what that would save."""

    kind: str
    """Stable name for scripts: ``hidden``, ``straggler``, ``channel_bound``, ..."""
    level: Level
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    """Global ranks that the sentence is about, the worst first; empty if it is about no rank."""
    layer: int | None = None
    advice: str = ""
    """What to do, in one or two sentences; empty if there is nothing to do."""
    confidence: float = 1.0
    """How sure it is: 1 if it was observed, less if it was inferred from figures that vary."""
    since_ns: int = 0
    """UNIX time from which it is true; 0 if unknown."""
    since_step: int | None = None
    """The step from which it is true; None if unknown."""
    evidence: tuple[str, ...] = ()
    """Sentences with the figures that prove it."""
    repair: Repair | None = None
    """What a repair would take away; None if no replay can say what that saves."""
    saving: Saving | None = None
    """What this would save, once it was replayed."""
    consequence_of: str = ""
    """The kind of the finding about the same series that explains this one; empty if none does."""
    run_id: str = ""
    """The run of the ranks, if the finding is about no single series."""

    @property
    def rank(self) -> int | None:
        """The rank that the sentence is most about, if it is about any."""
        return self.ranks[0] if self.ranks else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values. Numbers named ``*_ns`` are in nanoseconds; ``since`` is UNIX time in seconds."""
        return {
            "kind": self.kind,
            "level": self.level.word,
            "sentence": self.sentence,
            "numbers": {name: float(value) for name, value in self.numbers.items()},
            "ranks": list(self.ranks),
            "layer": self.layer,
            "advice": self.advice,
            "confidence": self.confidence,
            "since": self.since_ns / NS_PER_S if self.since_ns else None,
            "since_step": self.since_step,
            "evidence": list(self.evidence),
            "saving": None if self.saving is None else self.saving.to_json(),
            "consequence_of": self.consequence_of,
            "run_id": self.run_id,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the finding that :meth:`to_json` was called on, without its repair."""
        fields = dict(document)
        since, saving = fields.pop("since"), fields["saving"]
        return cls(
            **{
                **fields,
                "level": Level[fields["level"].upper()],
                "ranks": tuple(fields["ranks"]),
                "evidence": tuple(fields["evidence"]),
                "since_ns": 0 if since is None else round(since * NS_PER_S),
                "saving": None if saving is None else Saving(**saving),
            }
        )
