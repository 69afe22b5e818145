"""The feed: errors are never swallowed, and a slow screen gets fewer observations."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import pytest
from swtrace_tui.feed import Feed
from swtrace_tui.picture import Filter, picture

from tests.support.scenes import Still, app_over, empty, observation_of, run, until
from tests.support.simulated_rings import scenario

if TYPE_CHECKING:
    from swtrace.observing import Roster


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_a_roster_that_raises_ends_the_application_with_that_error() -> None:
    """An error while reading is never swallowed: the screen would freeze and look alive."""

    class Broken(Still):
        def poll(self, limit: int | None = None) -> bool:  # noqa: ARG002 (as the real one)
            raise RuntimeError("a bug")

    async def test() -> None:
        app = app_over(Broken(empty()))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app._exception is not None)

    with pytest.raises(RuntimeError, match="a bug"):
        run(test())


def test_observations_describe_themselves_in_a_line() -> None:
    """Frameworks take reprs of their arguments; these must not contain an observation's thousands of numbers."""
    source = stalled()
    assert len(repr(source.now)) < 100
    assert len(repr(picture(source.now, Filter()))) < 200


def test_a_slow_screen_gets_fewer_observations_not_a_queue_of_them() -> None:
    """The feed delivers the next observation only after the last one was drawn."""
    source = Still(empty())
    arrived: list[object] = []
    polled = threading.Event()
    feed = Feed(lambda: cast("Roster", source), arrived.append, arrived.append, frame_s=0.001)
    feed.start()
    while source.polls < 20:
        polled.wait(0.01)
    assert len(arrived) == 1
    feed.taken()
    seen = source.polls
    while source.polls < seen + 20:
        polled.wait(0.01)
    feed.stop(5)
    assert len(arrived) == 2
    assert source.closed
