"""The interface of a rule: what it looks at, and where its findings stand on the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from swtrace.diagnosis.case import Case
    from swtrace.diagnosis.finding import Finding
    from swtrace.observing.observation import Observation


class About(IntEnum):
    """What a finding is about, in the order in which findings of one level are shown."""

    CONDITION = 0
    """A rank no longer runs. All figures are from before."""
    HEADLINE = 1
    PLAN = 2
    CAUSE = 3
    """Why the series stalls or runs slowly."""
    FIGURES = 4
    """Figures that put the causes in proportion."""
    CAVEAT = 5
    """What the figures leave out, or why they may mislead."""


class Needs(Enum):
    """Which series a rule is about."""

    ANY = "any"
    STEPS = "steps"
    """With finished steps, shared or observed."""
    STALLS = "stalls"
    """Shared, with finished steps in which ranks waited."""
    OBSERVED = "observed"
    """Observed, with finished steps."""


STALLS = ("stalled", "partly_hidden", "worst_layer")
"""Kinds that whatever makes a series stall explains."""
LINKS = ("slow_link", "slow_source")
"""Kinds that ranks which are late, or lack a core, may cause: gloo moves the bytes in threads of both ranks, and
through ranks in between."""


class Rule(ABC):
    """One kind of finding about a series."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of all its findings."""
    about: ClassVar[About]
    needs: ClassVar[Needs] = Needs.ANY
    explains: ClassVar[tuple[str, ...]] = ()
    """Kinds that are consequences of what it finds, in the same series. They are no troubles of their own."""

    @abstractmethod
    def find(self, case: Case) -> Iterator[Finding]:
        """Yield what it finds in a series."""


class HostRule(ABC):
    """One kind of finding about ranks and rings, whatever their series."""

    kinds: ClassVar[tuple[str, ...]]

    @abstractmethod
    def find(self, observation: Observation) -> Iterator[Finding]:
        """Yield what it finds."""
