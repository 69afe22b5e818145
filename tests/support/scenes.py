"""Observations without rings and clocks, for tests that need the same pixels every time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Self, cast

from swtrace_tui.app import TopApp
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, Picture, picture
from swtrace_tui.views.overview import Overview
from swtrace_tui.views.timeline import Timeline
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import WindowsView
from textual.pilot import Pilot

from swtrace.observing import Link, Observation, ObservedRank, OriginStatus, Roster
from swtrace.observing.events import RingState
from swtrace.observing.observation import NO_FACTS
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.marks import Occupancy, WindowState
from swtrace.trace.ring_reader import RingStatistics
from tests.support.feeding import feed, ledger
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.patience import patience
from tests.support.schedules import Schedule, key
from tests.support.simulated_rings import scenario


class Still:
    """A roster that always returns the same observation; a test may replace it."""

    def __init__(self, observation: Observation) -> None:
        self.now = observation
        self.polls = 0
        self.closed = False

    def poll(self, limit: int | None = None) -> bool:  # noqa: ARG002 (there is nothing to limit)
        """Count the calls."""
        self.polls += 1
        return False

    def observe(self, *, facts_every_s: float = 0.0) -> Observation:  # noqa: ARG002 (nothing changes)
        """Return the observation."""
        return self.now

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Record that it was closed."""
        self.closed = True


def empty(*origins: OriginStatus) -> Observation:
    """Return an observation of nothing."""
    return Observation(taken_ns=0, origins=origins, ranks=(), facts=NO_FACTS, history={})


def observation_of(schedule: Schedule) -> Observation:
    """Return the observation at the end of a schedule."""
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts()
    end = max(rank.last_record_ns for rank in facts.ranks)
    return Observation(
        taken_ns=end,
        origins=(OriginStatus("still", Link.LIVE),),
        ranks=tuple(
            ObservedRank(
                identity=replace(schedule.identity(rank), model="tiny-llama"),
                series=(schedule.infos[rank],),
                ring=RingState(
                    key(rank),
                    alive=True,
                    closed=False,
                    statistics=RingStatistics(len(records), len(records), 0, 0, 0),
                    windows=(_windows(end),),
                    taken_ns=end + 3_000_000,
                ),
                died=False,
                before=0,
                run_began_ns=0,
            )
            for rank, records in enumerate(schedule.records)
        ),
        facts=facts,
        history={series.key: made.history(series.key) for series in facts.series},
    )


WALL_NS = 1_700_000_000 * 10**9
"""UNIX time at which a schedule begins."""


def observation_across(hosts: Hosts, wall_errors_ns: Sequence[int] = ()) -> Observation:
    """Return the observation at the end of a schedule whose ranks are on several hosts.

    Args:
        hosts: The schedule, and the hosts' clocks.
        wall_errors_ns: By host: how far its wall clock is ahead.
    """
    made = hosts.fed()
    facts = made.facts()
    seen = observation_of(hosts.seen())
    errors = wall_errors_ns or [0] * len(hosts.clocks)
    anchors = [
        ClockAnchor(clock.at(1), WALL_NS + error_ns) for clock, error_ns in zip(hosts.clocks, errors, strict=True)
    ]
    ranks = []
    for rank, last in zip(seen.ranks, facts.ranks, strict=True):
        number = rank.identity.rank
        ring = replace(
            rank.ring,
            anchor=anchors[hosts.host[number]],
            windows=(_windows(last.last_record_ns),),
            taken_ns=last.last_record_ns + 3_000_000,
        )
        identity = replace(hosts.identity(number), model=rank.identity.model)
        ranks.append(replace(rank, identity=identity, ring=ring))
    return replace(
        seen,
        ranks=tuple(ranks),
        facts=facts,
        history={series.key: made.history(series.key) for series in facts.series},
        clock_offsets={rank.key: rank.unix_offset_ns for rank in ranks},
    )


def on_two_hosts(schedule: Schedule, host: Sequence[int] = (0, 0, 1, 1)) -> Hosts:
    """Return a schedule whose ranks are on two hosts, one of which booted an hour later."""
    return Hosts(schedule, host, (HostClock(HOUR_NS), HostClock()))


def _windows(end: int) -> tuple[WindowState, ...]:
    return (
        WindowState(0, Occupancy.IN_USE, 24, 3, end - 900_000, end - 500_000, end - 400_000, end - 400_000),
        WindowState(1, Occupancy.INFLIGHT, 24, 4, end - 200_000, 0, 0, end - 200_000),
    )


def pictured(name: str = "stalled", selection: Filter | None = None, **shape: Any) -> Picture:
    """Return the picture of a scenario."""
    return picture(observation_of(scenario(name, **shape)), selection or Filter())


FRAME_S = 0.05
"""Time between frames. Textual's pilot waits after every key until the process is idle for a moment, for
up to a second."""


def app_over(still: Still, **settings: Any) -> TopApp:
    """Return an application over a roster that never changes."""
    return TopApp(lambda: cast("Roster", still), frame_s=FRAME_S, **settings)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline:
        if condition():
            return
        await pilot.pause(0.02)
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")


_QUEUES = 12
"""More than the number of queues that a key passes: from the application to the focused widget, and back."""


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Press keys one by one, each fully handled before the next.

    Textual's pilot mistakes a process that gets no core for an idle one, and returns too early.
    """
    for name in keys:
        await pilot.press(name)
        await settled(pilot)


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until all messages are handled and drawn, including those sent while handling them."""
    for _ in range(_QUEUES):
        await pilot.pause(0)


def shown(app: TopApp) -> str:
    """Return the screen as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in lines)


__all__ = [
    "FRAME_S",
    "Still",
    "app_over",
    "empty",
    "key",
    "observation_across",
    "observation_of",
    "on_two_hosts",
    "pictured",
    "press",
    "run",
    "settled",
    "shown",
    "until",
]


def drawn(view: Overview | Timeline | WindowsView, width: int, height: int, **shape: int) -> list[str]:
    """Return the lines of a view of a stalled series, as text."""
    return [strip.text for strip in view.draw(Scene(pictured("stalled", None, **shape), MONO), width, height)]
