"""From rings, recordings and daemons to one observation: the way of every record to every view.

An :class:`Origin` yields events, a :class:`Roster` folds them, an :class:`Observation` is what is known at one moment.
"""

from __future__ import annotations

from swtrace.observing.observation import Observation, ObservedRank
from swtrace.observing.origin import Link, Origin, OriginStatus
from swtrace.observing.rings import HostRings
from swtrace.observing.roster import Roster, watch_rings

__all__ = ["HostRings", "Link", "Observation", "ObservedRank", "Origin", "OriginStatus", "Roster", "watch_rings"]
