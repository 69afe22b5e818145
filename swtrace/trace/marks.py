"""What a ring says of this moment: the state of each window, and what the rank's host is doing.

Records show a wait or a broadcast only once it is done. The recorder overwrites these marks in place meanwhile.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import NamedTuple

from swtrace.trace import schema

_COLLECTIVES, _STAGES = frozenset(map(int, schema.Collective)), frozenset(map(int, schema.Stage))
_WINDOW = struct.Struct(f"<{schema.WINDOW_WORDS}Q")
_FIRST_PROGRESS = (schema.PROGRESS_OFFSET - schema.COLLECTIVE_OFFSET) // 8
_MARKS = struct.Struct(f"<{_FIRST_PROGRESS + schema.SERIES_SLOTS * schema.PROGRESS_WORDS}Q")
MARKS_BYTES = _MARKS.size
"""From the rank's collective to the progress of its last series."""


class Occupancy(StrEnum):
    """State of a window."""

    FREE = "free"
    INFLIGHT = "inflight"
    """Issued, not ready."""
    READY = "ready"
    """Ready, not yet waited for."""
    IN_USE = "in_use"
    """Waited for, not yet issued again."""


class WindowState(NamedTuple):
    """One window at one moment. Instants not reached yet are 0."""

    window: int
    state: Occupancy
    step: int
    """The step that waits for the occupant, modulo 2**32."""
    position: int
    issued_ns: int
    ready_ns: int
    in_use_ns: int
    since_ns: int
    """When the window entered its state; 0 if unknown."""


class Progress(NamedTuple):
    """How far a rank's host is in a series at one moment."""

    issued: int
    """Number of broadcasts that it has issued."""
    stage: schema.Stage
    since_ns: int
    """When it last issued one, stopped waiting, or began or ended a step; 0 before the first step."""
    waiting: int = -1
    """Position of the layer that it is blocked on; -1 if it is not."""
    waiting_since_ns: int = 0
    completed: int = 0
    """On a device: steps that it is known to have completed."""
    completed_ns: int = 0
    """When that number was last seen to rise, or to be the number of steps launched; 0 unless on a device."""

    @property
    def in_step(self) -> bool:
        """Whether the host is in a step, as far as its marks say."""
        return self.stage is not schema.Stage.BETWEEN


class Marks(NamedTuple):
    """What a rank's host does at one moment, which its records show only once it is done."""

    progress: tuple[Progress, ...] = ()
    """By series, in the order of the rank's table."""
    collective: schema.Collective | None = None
    """The collective that the rank is in and that no series issued."""
    collective_ns: int = 0
    """When it entered that one or, if it is in none, left the last one; 0 before the first."""


def decode_windows(table: bytes) -> tuple[WindowState, ...]:
    """Return the state of every window of a series, from its part of the window table."""
    return tuple(_window_state(window, *words) for window, words in enumerate(_WINDOW.iter_unpack(table)))


def decode_marks(header: bytes, series: int) -> Marks:
    """Return what the rank's host was doing.

    Args:
        header: :data:`MARKS_BYTES` of the ring, from ``schema.COLLECTIVE_OFFSET`` on.
        series: How many series the rank's table has.
    """
    words = _MARKS.unpack(header)
    kind, collective_ns = words[:2]
    places = range(_FIRST_PROGRESS, _FIRST_PROGRESS + series * schema.PROGRESS_WORDS, schema.PROGRESS_WORDS)
    return Marks(
        tuple(_progress(*words[place : place + schema.PROGRESS_WORDS]) for place in places),
        schema.Collective(kind) if kind in _COLLECTIVES else None,
        collective_ns,
    )


def _window_state(window: int, occupant: int, issued_ns: int, ready: int, in_use: int) -> WindowState:
    generation = occupant >> schema.GENERATION_SHIFT
    step, position = occupant & 0xFFFFFFFF, (occupant >> schema.POSITION_SHIFT) & 0xFFFF
    if generation == 0:
        return WindowState(window, Occupancy.FREE, 0, 0, 0, 0, 0, 0)
    ready_ns = _instant(ready, generation, issued_ns)
    in_use_ns = _instant(in_use, generation, issued_ns)
    if 0 < in_use_ns < issued_ns or 0 < ready_ns < issued_ns:
        # The writer has stored the next issued instant and not yet its occupant.
        return WindowState(window, Occupancy.FREE, 0, 0, 0, 0, 0, 0)
    state, since_ns = (
        (Occupancy.IN_USE, in_use_ns)
        if in_use_ns
        else (Occupancy.READY, ready_ns)
        if ready_ns
        else (Occupancy.INFLIGHT, issued_ns)
    )
    return WindowState(window, state, step, position, issued_ns, ready_ns, in_use_ns, since_ns)


def _instant(word: int, generation: int, issued_ns: int) -> int:
    """Complete a 48-bit instant from the issued one; 0 for another generation."""
    return _completed(word, issued_ns) if word >> schema.GENERATION_SHIFT == generation else 0


def _completed(word: int, near_ns: int) -> int:
    """Complete a 48-bit instant from one that is less than 1.5 days away."""
    ahead = (word - near_ns) & schema.INSTANT_MASK
    return near_ns + ahead - ((ahead >> (schema.GENERATION_SHIFT - 1)) << schema.GENERATION_SHIFT)


def _progress(issued: int, since_ns: int, waiting: int, completed: int, completed_ns: int, *_unused: int) -> Progress:
    stage = issued >> schema.STAGE_SHIFT
    return Progress(
        issued & schema.ISSUED_MASK,
        schema.Stage(stage) if stage in _STAGES else schema.Stage.BETWEEN,
        since_ns,
        waiting >> schema.GENERATION_SHIFT if waiting else -1,
        _completed(waiting, since_ns) if waiting else 0,
        completed,
        completed_ns,
    )
