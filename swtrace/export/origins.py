"""What time a rank's clocks tell, where no daemon watches: from the anchors that were read with its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from swtrace.daemon.export import rank_resource
from swtrace.daemon.spans import SpanOrigin
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey


def origins(identities: Iterable[RankIdentity], anchors: Mapping[RankKey, ClockAnchor]) -> dict[RankKey, SpanOrigin]:
    """Return what spans need to know of each rank: as the daemon states it, so that ids and times agree."""
    identities = tuple(identities)
    began: dict[str, int] = {}
    for identity in identities:
        began[identity.run_id] = min(began.get(identity.run_id, identity.start_time_ns), identity.start_time_ns)
    return {
        identity.key: SpanOrigin(
            resource=rank_resource(identity),
            monotonic_offset_ns=anchors[identity.key].realtime_ns - anchors[identity.key].monotonic_ns,
            virtual_offset_ns=began[identity.run_id],
        )
        for identity in identities
        if identity.key in anchors
    }
