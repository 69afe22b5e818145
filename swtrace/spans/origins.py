"""The origin of a rank's spans: the process that recorded them, and the offsets of its clocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource

from swtrace.ledger.facts import Mask, Nanoseconds, StepFacts
from swtrace.observing.observation import run_begins
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey
from swtrace.trace.schema import Clock

_FIRST_INSTANT, _LAST_INSTANT = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """What a rank's spans need besides the facts: its resource, and the offsets of its clocks to UNIX time."""

    resource: Resource
    monotonic_offset_ns: int
    """UNIX time minus CLOCK_MONOTONIC of the rank's host."""
    virtual_offset_ns: int
    """UNIX time that is shown for instant 0 of a simulated clock."""

    def unix_ns(self, instant_ns: int, clock: int) -> int:
        """Return an instant of a record as UNIX time, limited to what a span can represent."""
        offset = self.virtual_offset_ns if clock == Clock.VIRTUAL else self.monotonic_offset_ns
        return min(max(instant_ns + offset, 0), _LAST_INSTANT)


Origins = Mapping[RankKey, SpanOrigin]


def step_origins(step: StepFacts, origins: Origins) -> list[SpanOrigin | None]:
    """Return the origin of each group rank, with the offset that converts the instants of a step's facts.

    If the ranks of several clocks are compared, all instants are on one clock, so one offset converts them all: that
    of the first rank. If they are not compared, each rank is shown by its own host's clock.
    """
    known = [origins.get(rank) for rank in step.ranks]
    if not (step.clock_shift_ns.any() or step.clock_bound_ns.any()):
        return known
    offsets = [
        0 if origin is None else origin.monotonic_offset_ns - shift_ns
        for origin, shift_ns in zip(known, step.clock_shift_ns.tolist(), strict=True)
    ]
    if step.comparable:
        first = next((index for index, origin in enumerate(known) if origin is not None), 0)
        offsets = [offsets[first]] * len(offsets)
    return [
        None if origin is None else replace(origin, monotonic_offset_ns=offset_ns)
        for origin, offset_ns in zip(known, offsets, strict=True)
    ]


class ShownTime:
    """:meth:`SpanOrigin.unix_ns` for many instants of many ranks. Without an origin, the offsets are 0."""

    def __init__(self, origins: Iterable[SpanOrigin | None]) -> None:
        offsets = [(0, 0) if each is None else (each.monotonic_offset_ns, each.virtual_offset_ns) for each in origins]
        bounds = [[_bounds(offset) for offset in pair] for pair in offsets]
        self._least, self._greatest, self._first = np.array(bounds, np.int64).transpose(2, 0, 1)

    def unix_ns(self, instants_ns: Nanoseconds, ranks: npt.NDArray[np.integer], virtual: Mask) -> Nanoseconds:
        """Return instants as UNIX time. ``ranks`` and ``virtual`` apply to the last axis of the instants."""
        which = (ranks, virtual.astype(np.intp))
        least = self._least[which]
        shown: Nanoseconds = np.clip(instants_ns, least, self._greatest[which]) - least + self._first[which]
        return shown


def _bounds(offset_ns: int) -> tuple[int, int, int]:
    """Return the least and greatest instants that can be shown without overflow, and the UNIX time of the least."""
    least, greatest = (min(max(bound - offset_ns, _FIRST_INSTANT), _LAST_INSTANT) for bound in (0, _LAST_INSTANT))
    return least, greatest, min(max(least + offset_ns, 0), _LAST_INSTANT)


def rank_resource(identity: RankIdentity) -> Resource:
    """Return the OpenTelemetry resource of the process that recorded a rank.

    Its model and workload are the rank's own, whatever the environment of this process says about itself.
    """
    process = process_resource(
        identity.version, f"{identity.run_id}/{identity.rank}", host=identity.host, pid=identity.pid
    )
    model = {"swtrace.model": identity.model} if identity.model else {}
    return process.merge(Resource({**model, **identity.workload.attributes()}))


def process_resource(version: str, instance: str, *, host: str, pid: int) -> Resource:
    """Return the OpenTelemetry resource of a process of swtrace.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` override everything else.
    """
    known = Resource(
        {
            SERVICE_NAME: "swtrace",
            "service.version": version,
            "service.instance.id": instance,
            "host.name": host,
            "process.pid": pid,
        }
    )
    return Resource.create().merge(known).merge(OTELResourceDetector().detect())


class RankOrigins:
    """Makes the origins of ranks, for a daemon, a session or a recording. Each rank's resource is made only once."""

    def __init__(self) -> None:
        self._resources: dict[RankIdentity, Resource] = {}

    def of(
        self, identities: Iterable[RankIdentity], anchors: Mapping[RankKey, ClockAnchor]
    ) -> dict[RankKey, SpanOrigin]:
        """Return the origin of each rank that has an anchor, and forget the resources of all other ranks."""
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
