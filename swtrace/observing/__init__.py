"""Turn events of rings, recordings and daemons into one observation, which every view uses.

An :class:`Origin` yields events, a :class:`Roster` folds them, and an :class:`Observation` is the state at one moment.
"""

from __future__ import annotations

from swtrace.observing.observation import Observation, ObservedRank
from swtrace.observing.origin import Link, Origin, OriginStatus
from swtrace.observing.rings import HostRings
from swtrace.observing.roster import Roster, watch_rings

__all__ = ["HostRings", "Link", "Observation", "ObservedRank", "Origin", "OriginStatus", "Roster", "watch_rings"]
