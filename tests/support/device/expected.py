"""What every wait of a series on a device must find, from durations alone: arithmetic, without any device.

It is the truth that tests compare with, so it knows nothing of streams, events and graphs: there is the forward,
which goes on when it may, and a channel that moves one layer after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Durations:
    """What each position takes, in ns."""

    before: tuple[int, ...]
    """Compute between the reach of a layer and the wait for it."""
    linear: tuple[int, ...]
    transfer: tuple[int, ...]

    @classmethod
    def even(cls, layers: int, *, before: int, linear: int, transfer: int) -> Durations:
        """Return the same for every position."""
        return cls((before,) * layers, (linear,) * layers, (transfer,) * layers)


@dataclass(frozen=True, slots=True)
class Wait:
    """What one wait finds; ns since the first step arrived at its first layer."""

    step: int
    position: int
    issued_ns: int
    ready_ns: int
    begin_ns: int
    prefilled: bool

    @property
    def stall_ns(self) -> int:
        """How long the forward was held."""
        return 0 if self.prefilled else max(0, self.ready_ns - self.begin_ns)

    @property
    def slack_ns(self) -> int:
        """How long the bytes lay ready."""
        return 0 if self.prefilled else max(0, self.begin_ns - self.ready_ns)


class Schedule:
    """Receivers' waits in their order, for a host whose calls cost nothing."""

    def __init__(self, durations: Durations, prefetch_step: int, owned: Sequence[bool]) -> None:
        """Begin before the first step.

        Args:
            durations: of everything.
            prefetch_step: k.
            owned: by position, whether this rank keeps the layer.
        """
        self.waits: list[Wait] = []
        self._durations = durations
        self._k = prefetch_step
        self._owned = owned
        self._step = -1
        self._now = 0
        """How far the forward has come on the device."""
        self._host = 0
        """How far the host has: the device does nothing before it was launched."""
        self._free = 0
        """When the channel has moved everything it was given."""
        self._issued: dict[int, int] = {}
        self._ready: dict[int, int] = {}

    def eager(self, *, launched_ns: int = 0, pause_ns: int = 0) -> None:
        """Take a step whose launch began at ``launched_ns``, the host being busy for a while before each linear."""
        self._begin(launched_ns)
        layers = len(self._owned)
        for position in range(layers):
            self._issue((position + self._k) % layers)
            self._compute(self._durations.before[position])
            self._host += pause_ns
            self._now = max(self._now, self._host)
            self._wait(position)
            self._compute(self._durations.linear[position])

    def replayed(self, *, launched_ns: int = 0) -> None:
        """Take a step that is a graph's replay: the first k are waited for before it, and issued behind it."""
        self._begin(launched_ns)
        layers = len(self._owned)
        for position in range(self._k):
            self._wait(position)
        self._now = max(self._now, self._free)  # nothing is under way when the graph begins,
        for position in range(layers):
            if position + self._k < layers:
                self._issue(position + self._k)
            self._compute(self._durations.before[position])
            if position >= self._k:
                self._wait(position)
            self._compute(self._durations.linear[position])
        self._now = max(self._now, self._free)  # and it is over when all of it is
        for position in range(self._k):
            self._issue(position)

    def _begin(self, launched_ns: int) -> None:
        self._step += 1
        self._host = max(self._host, launched_ns)
        self._now = max(self._now, self._host)

    def _compute(self, ns: int) -> None:
        self._now += ns

    def _issue(self, position: int) -> None:
        self._issued[position] = self._now
        self._ready[position] = self._free = max(self._now, self._free) + self._durations.transfer[position]

    def _wait(self, position: int) -> None:
        if self._owned[position]:
            return
        ready_ns = self._ready.get(position, self._now)
        issued_ns = self._issued.get(position, self._now)
        self.waits.append(
            Wait(self._step, position, issued_ns, ready_ns, self._now, prefilled=position not in self._ready)
        )
        self._now = max(self._now, ready_ns)
