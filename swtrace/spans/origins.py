"""Where a rank's spans come from: the process that recorded it, and what time its clocks tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource

from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey
from swtrace.trace.schema import Clock

_LAST_INSTANT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """What a rank's spans need beside the facts: who it is, and what time its clocks tell."""

    resource: Resource
    monotonic_offset_ns: int
    """UNIX time minus CLOCK_MONOTONIC of the rank's host."""
    virtual_offset_ns: int
    """UNIX time at which a series on a simulated clock is said to have begun."""

    def unix_ns(self, instant_ns: int, clock: int) -> int:
        """Return an instant of a record as UNIX time, within what a span can carry."""
        offset = self.virtual_offset_ns if clock == Clock.VIRTUAL else self.monotonic_offset_ns
        return min(max(instant_ns + offset, 0), _LAST_INSTANT)


Origins = Mapping[RankKey, SpanOrigin]


def rank_resource(identity: RankIdentity) -> Resource:
    """Return what a rank's spans say of the process that they came from.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win over everything that is known from the ring.
    """
    known = Resource(
        {
            SERVICE_NAME: "swtrace",
            "service.version": identity.version,
            "service.instance.id": f"{identity.run_id}/{identity.rank}",
            "host.name": identity.host,
            "process.pid": identity.pid,
        }
    )
    return Resource.create().merge(known).merge(OTELResourceDetector().detect())


class RankOrigins:
    """The origins of ranks, for a daemon, a session or a recording alike. Each rank's resource is made once."""

    def __init__(self) -> None:
        self._resources: dict[RankIdentity, Resource] = {}

    def of(
        self, identities: Iterable[RankIdentity], anchors: Mapping[RankKey, ClockAnchor]
    ) -> dict[RankKey, SpanOrigin]:
        """Return the origin of each rank that has an anchor, and forget the resources of all others."""
        identities = tuple(identities)
        began = run_begins(identities)
        anchored = [(identity, anchors[identity.key]) for identity in identities if identity.key in anchors]
        self._resources = {
            identity: self._resources[identity] if identity in self._resources else rank_resource(identity)
            for identity, _ in anchored
        }
        return {
            identity.key: SpanOrigin(
                resource=self._resources[identity],
                monotonic_offset_ns=anchor.realtime_ns - anchor.monotonic_ns,
                virtual_offset_ns=began[identity.run_id],
            )
            for identity, anchor in anchored
        }


def run_begins(identities: Iterable[RankIdentity]) -> dict[str, int]:
    """Return for each run when the first of its rings was made, UNIX time."""
    begins: dict[str, int] = {}
    for identity in identities:
        begins[identity.run_id] = min(begins.get(identity.run_id, identity.start_time_ns), identity.start_time_ns)
    return begins
