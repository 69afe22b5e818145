"""The state of rings in a recording: read back as it was, and an error about damage whatever else it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from swtrace.errors import RecordingFormatError
from swtrace.observing.events import RingsSeen, RingState
from swtrace.recording.status import pack_status, unpack_status
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.marks import Marks, Occupancy, Progress, WindowState
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import Collective, Stage
from tests.support.schedules import key

RANKS = {7: key(0)}
SEEN = RingsSeen(
    (
        RingState(
            key(0),
            alive=True,
            closed=False,
            statistics=RingStatistics(9, 4, 3, 1, 1, 0),
            anchor=ClockAnchor(5, 6),
            windows=((WindowState(0, Occupancy.READY, 3, 2, 10, 20, 0, 20),),),
            marks=Marks((Progress(62, Stage.MARKED, 10, 0, 20, 1, 40),), Collective.BARRIER, 30),
            closed_series=frozenset({1}),
            taken_ns=50,
            down_since_ns=0,
            lag_ns=8,
        ),
    ),
    {"/dev/shm/x": "not a ring"},
    caught_up=False,
)
WRONG: tuple[Any, ...] = (None, True, -1, 1 << 70, 1e999, "", "x", [], [[]], [None], {}, {"x": 1})
"""What else JSON can hold, one of each kind."""


def test_it_is_read_back() -> None:
    """Every field but a file's path."""
    assert unpack_status(pack_status(SEEN, {key(0): 7}), RANKS) == SEEN


def test_whatever_else_it_holds_is_read_or_is_damage() -> None:
    """Whatever is in the place of any value, at any depth, or missing there: the only error is the one about damage."""
    tried = 0
    document = json.loads(pack_status(SEEN, {key(0): 7}))
    for place in tuple(_places(document)):
        for wrong in (*WRONG, ...):
            changed = json.loads(json.dumps(document))
            *above, last = place
            holder = changed
            for step in above:
                holder = holder[step]
            if wrong is ...:
                del holder[last]
            else:
                holder[last] = wrong
            with suppress(RecordingFormatError):
                unpack_status(json.dumps(changed).encode(), RANKS)
            tried += 1
    assert tried > 400


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value within a document."""
    if place:
        yield place
    for step, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(each, (*place, step))
