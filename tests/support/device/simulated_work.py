"""What a simulated device works on: kernels, markers, and graphs of captured ones, with true instants.

A work's instants are settled as soon as those of all that it comes after are. The effects that it has on the
device are told apart from it: they are carried out later, in the order of their instants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Effect = Callable[[int], object]
"""What work does on the device, at its start or at its end; called with the true instant."""
Duration = int | Callable[[], int]
"""In ns; a function is asked each time the work runs."""
At = tuple[int, Effect]
"""An instant, and what happens then."""


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """What a device takes for time."""

    origin_ns: int = 1_700_000_000_000_000_000
    """What it shows at true time 0."""
    drift_ppb: int = 40_000
    """How much faster than the host's clock it runs; 1000 ppb are 1 us per second."""
    tick_ns: int = 1
    """It shows whole multiples of this."""

    def at(self, true_ns: int) -> int:
        """Return what the clock shows at a true instant."""
        shown = self.origin_ns + true_ns + true_ns * self.drift_ppb // 1_000_000_000
        return shown - shown % self.tick_ns


class Work:
    """One thing on a stream."""

    __slots__ = ("after", "at_end", "at_start", "duration", "end_ns", "enqueued_ns", "start_ns")

    def __init__(
        self,
        enqueued_ns: int,
        after: Sequence[Work],
        duration: Duration | None,
        at_start: Effect | None = None,
        at_end: Effect | None = None,
    ) -> None:
        self.enqueued_ns = enqueued_ns
        self.after = after
        self.duration = duration
        """None: it does not end before it is told to."""
        self.at_start = at_start
        self.at_end = at_end
        self.start_ns: int | None = None
        """True instant, once it is settled."""
        self.end_ns: int | None = None

    def settle(self) -> list[At] | None:
        """Find the instants, if those of all that it comes after are known; return the effects, in order."""
        start_ns = self.start_ns
        if start_ns is None:
            start_ns = self.enqueued_ns
            for before in self.after:
                if before.end_ns is None:
                    return None
                start_ns = max(start_ns, before.end_ns)
            self.start_ns = start_ns
            self.after = ()  # or every work would keep all works before it
        return self._run(start_ns)

    def _run(self, start_ns: int) -> list[At] | None:
        effects: list[At] = []
        if self.at_start is not None:
            effects.append((start_ns, self.at_start))
            self.at_start = None
        if self.duration is None:
            return effects or None
        self.end_ns = start_ns + (self.duration if isinstance(self.duration, int) else self.duration())
        if self.at_end is not None:
            effects.append((self.end_ns, self.at_end))
        return effects

    def done(self, now_ns: int) -> bool:
        """Whether the work has ended."""
        return self.end_ns is not None and self.end_ns <= now_ns


class Session:
    """A capture under way: what was captured, and which streams take part."""

    def __init__(self) -> None:
        self.nodes: list[Work] = []
        self.broken = ""
        """Why it cannot be finished."""

    def leftover(self, tail: Sequence[Work]) -> int:
        """Return how many captured works do not come before the origin's ``tail``."""
        joined: set[int] = set()
        ahead = list(tail)
        while ahead:
            work = ahead.pop()
            if id(work) not in joined:
                joined.add(id(work))
                ahead.extend(work.after)
        return sum(id(work) not in joined for work in self.nodes)


class SimulatedGraph:
    """Captured work that runs again at each launch."""

    def __init__(self) -> None:
        self.nodes: list[Work] = []
        self.ready = False
        self.launches = 0
        self._index: list[tuple[int, ...]] = []
        self._plan: tuple[list[At], int] | None = None
        """Effects and the end, relative to the start; where no duration changes from launch to launch."""

    def finish(self, session: Session) -> None:
        """Take over what was captured."""
        place = {id(work): number for number, work in enumerate(session.nodes)}
        self.nodes = session.nodes
        self._index = [tuple(place[id(before)] for before in work.after) for work in session.nodes]
        self._plan = None
        if all(isinstance(work.duration, int) for work in self.nodes):
            self._plan = self._walk(0)
        self.ready = True

    def run(self, start_ns: int) -> tuple[list[At], int]:
        """Run all nodes from ``start_ns`` on; return their effects in order, and the end of the last."""
        if self._plan is None:
            return self._walk(start_ns)
        effects, end_ns = self._plan
        return [(start_ns + offset, effect) for offset, effect in effects], start_ns + end_ns

    def _walk(self, start_ns: int) -> tuple[list[At], int]:
        ends: list[int] = []
        effects: list[At] = []
        for work, befores in zip(self.nodes, self._index, strict=True):
            begin_ns = max((ends[before] for before in befores), default=start_ns)
            if work.duration is None:
                raise RuntimeError("a work without an end was captured")
            end_ns = begin_ns + (work.duration if isinstance(work.duration, int) else work.duration())
            ends.append(end_ns)
            if work.at_start is not None:
                effects.append((begin_ns, work.at_start))
            if work.at_end is not None:
                effects.append((end_ns, work.at_end))
        effects.sort(key=lambda at: at[0])  # stable: what comes after another does not overtake it
        return effects, max(ends, default=start_ns)


class Launch(Work):
    """A graph's launch: it ends when all of the graph's nodes have."""

    __slots__ = ("graph",)

    def __init__(self, enqueued_ns: int, after: Sequence[Work], graph: SimulatedGraph) -> None:
        super().__init__(enqueued_ns, after, None)
        self.graph = graph

    def _run(self, start_ns: int) -> list[At]:
        effects, self.end_ns = self.graph.run(start_ns)
        return effects
