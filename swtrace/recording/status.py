"""The state of the rings as the payload of a frame: JSON whose values are all checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from swtrace.errors import RecordingFormatError
from swtrace.observing.events import RingsSeen, RingState
from swtrace.recording import format as layout
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey
from swtrace.trace.marks import Marks, Occupancy, Progress, WindowState
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import Collective, Stage


def pack_status(seen: RingsSeen, numbers: Mapping[RankKey, int]) -> bytes:
    """Return the payload of a frame, without ranks that have no number."""
    document = {
        "ranks": [
            {
                "rank": numbers[ring.rank],
                "alive": ring.alive,
                "closed": ring.closed,
                "statistics": list(ring.statistics),
                "anchor": [ring.anchor.monotonic_ns, ring.anchor.realtime_ns],
                "windows": [[[window.state.value, *window[2:]] for window in windows] for windows in ring.windows],
                "progress": [list(progress) for progress in ring.marks.progress],
                "collective": [ring.marks.collective or 0, ring.marks.collective_ns],
                **({"closed_series": sorted(ring.closed_series)} if ring.closed_series else {}),
                "taken_ns": ring.taken_ns,
                "down_since_ns": ring.down_since_ns,
                "lag_ns": ring.lag_ns,
            }
            for ring in seen.rings
            if ring.rank in numbers
        ],
        "problems": dict(seen.problems),
        "caught_up": seen.caught_up,
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def unpack_status(raw: bytes, ranks: Mapping[int, RankKey]) -> RingsSeen:
    """Return what :func:`pack_status` was given, without the paths of the files.

    Raises:
        RecordingFormatError: the payload is damaged.
    """
    try:
        document = layout.unpack_json(raw)
        return RingsSeen(
            tuple(_ring(entry, ranks) for entry in document["ranks"]),
            {str(path): str(text) for path, text in document["problems"].items()},
            caught_up=bool(document["caught_up"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise RecordingFormatError(f"damaged status frame ({error})") from error


def _ring(entry: Mapping[str, Any], ranks: Mapping[int, RankKey]) -> RingState:
    collective, collective_ns = entry["collective"]
    return RingState(
        rank=ranks[entry["rank"]],
        alive=bool(entry["alive"]),
        closed=bool(entry["closed"]),
        statistics=RingStatistics(*(int(value) for value in entry["statistics"])),
        anchor=ClockAnchor(*(int(value) for value in entry["anchor"])),
        windows=tuple(
            tuple(
                WindowState(number, Occupancy(state), *(int(value) for value in values))
                for number, (state, *values) in enumerate(windows)
            )
            for windows in entry["windows"]
        ),
        marks=Marks(
            tuple(
                Progress(int(issued), Stage(stage), *(int(value) for value in values))
                for issued, stage, *values in entry["progress"]
            ),
            Collective(collective) if collective else None,
            int(collective_ns),
        ),
        closed_series=frozenset(int(index) for index in entry.get("closed_series", ())),
        taken_ns=int(entry["taken_ns"]),
        down_since_ns=int(entry["down_since_ns"]),
        lag_ns=int(entry["lag_ns"]),
    )
