"""The rings' state as a frame's payload: JSON, read with every value checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from swtrace.errors import RecordingFormatError
from swtrace.recording import format as layout
from swtrace.recording.events import RankState
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey
from swtrace.trace.reader import Occupancy, RingStatistics, WindowState


def pack_status(states: tuple[RankState, ...], numbers: Mapping[RankKey, int]) -> bytes:
    """Return the payload of a frame; ranks that have no number are left out."""
    document = {
        "ranks": [
            {
                "rank": numbers[state.rank],
                "alive": state.alive,
                "closed": state.closed,
                "statistics": list(state.statistics),
                "anchor": [state.anchor.monotonic_ns, state.anchor.realtime_ns],
                "windows": {
                    name: [[window.state.value, *window[2:]] for window in windows]
                    for name, windows in state.windows.items()
                },
            }
            for state in states
            if state.rank in numbers
        ]
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def unpack_status(raw: bytes, ranks: Mapping[int, RankKey]) -> tuple[RankState, ...]:
    """Return what :func:`pack_status` was given.

    Raises:
        RecordingFormatError: it is damaged.
    """
    try:
        return tuple(_state(entry, ranks) for entry in layout.unpack_json(raw)["ranks"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingFormatError(f"damaged status frame ({error})") from error


def _state(entry: Mapping[str, Any], ranks: Mapping[int, RankKey]) -> RankState:
    return RankState(
        rank=ranks[entry["rank"]],
        alive=bool(entry["alive"]),
        closed=bool(entry["closed"]),
        statistics=RingStatistics(*(int(value) for value in entry["statistics"])),
        anchor=ClockAnchor(*(int(value) for value in entry["anchor"])),
        windows={
            str(name): tuple(
                WindowState(number, Occupancy(state), *(int(value) for value in values))
                for number, (state, *values) in enumerate(windows)
            )
            for name, windows in entry["windows"].items()
        },
    )
