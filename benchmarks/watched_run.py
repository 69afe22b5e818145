"""A simulated run on many hosts: its schedule, and the clocks by which its ranks record it.

A few runs of steps are simulated in advance and repeated. All causes of stall occur, and delay a step by 0.3 to 3 ms
each: hosts that enter it late, ranks that are late once, one straggler, slow transfers to all ranks, and slow transfers
to one host, which other deliveries queue behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from benchmarks.recordings import identity, info
from swtrace.ledger.channel import RECEIVER, SERIAL
from swtrace.ledger.rendezvous import GROUP, TREE, Rendezvous
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.records import STEP, TRANSFER, Records
from swtrace.trace.schema import NO_WINDOW, RUN_STEPS, Kind, Observed, Phase, TransferFlag
from tests.support.host_clocks import HostClock, on_clock

RUN = "bench"
TRANSPORTS: Mapping[str, tuple[str, str]] = {"nccl": (GROUP, SERIAL), "gloo": (TREE, RECEIVER)}
"""Rendezvous and queue of each transport."""
TEMPLATES = 4
"""Different runs of steps, repeated in turn."""
_US = 1_000
_ORIGIN_NS = 10**12
_COMPUTE_NS, _TRANSFER_NS, _WAKE_NS = 200 * _US, 120 * _US, 12 * _US

_Int = npt.NDArray[np.int64]


def _delay(chance: np.random.Generator) -> int:
    """Return 0.3 to 3 ms; small delays are more frequent."""
    return round(300 * _US * 10 ** chance.random())


@dataclass
class WatchedRun:
    """The simulated ranks."""

    ranks: int
    hosts: int
    layers: int
    rate: float
    every: int
    transport: str = "nccl"
    seed: int = 1
    began_ns: int = 0
    """When the first step begins, in CLOCK_MONOTONIC of this machine."""
    templates: list[list[Records]] = field(default_factory=list)
    """``[template][rank]``, on a clock that shows ``_ORIGIN_NS`` at the begin of the first step."""

    def __post_init__(self) -> None:
        """Make the records."""
        chance = np.random.default_rng(self.seed)
        self.templates = [self._simulated(chance) for _ in range(TEMPLATES)]

    @property
    def period_s(self) -> float:
        """Time from one run of steps to the next."""
        return RUN_STEPS * self.every / self.rate

    @property
    def straggler(self) -> int:
        """The rank whose compute takes longer in some layers of every step."""
        return min(37, self.ranks - 1)

    def clock(self, host: int) -> HostClock:
        """Return a host's clock; the first one is this machine's."""
        return HostClock(host * 61 * 10**9, (host % 21) * 4e-6 if host else 0.0)

    def host(self, rank: int) -> int:
        """Return the host of a rank."""
        return rank * self.hosts // self.ranks

    def identity(self, rank: int) -> RankIdentity:
        """Return the identity of a rank on its host."""
        host = self.host(rank)
        return replace(identity(rank), host=f"host-{host}", boot_id=f"boot-{host}")

    def info(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it."""
        rendezvous, queue = TRANSPORTS[self.transport]
        of_rank = info(rank, self.ranks, self.layers)
        return replace(of_rank, transport=self.transport, rendezvous=rendezvous, queue=queue)

    def ends_s(self, number: int) -> float:
        """Return when a run of steps ends, in CLOCK_MONOTONIC of this machine."""
        return self.began_ns / 1e9 + number * self.period_s + RUN_STEPS / self.rate

    def records(self, rank: int, number: int) -> Records:
        """Return a rank's records of a run of steps, on the first host's clock."""
        begin_ns = self.began_ns + round(number * self.period_s * 1e9)
        steps = number * RUN_STEPS * self.every
        moved = on_clock(self.templates[number % TEMPLATES][rank], HostClock(begin_ns - _ORIGIN_NS))
        moved["sequence"] += steps * (self.layers + 1)
        moved["step"] += steps
        moved["operation"][moved["kind"] != Kind.STEP] += steps * self.layers
        return moved

    def _simulated(self, chance: np.random.Generator) -> list[Records]:
        """Simulate a run of steps, and one before it, which issues the first broadcast."""
        ranks, layers = self.ranks, self.layers
        kind, queue = TRANSPORTS[self.transport]
        source = np.arange(layers) % ranks
        rendezvous = Rendezvous(kind, ranks, source)
        host = np.arange(ranks) * self.hosts // ranks
        records = np.zeros((RUN_STEPS + 1, ranks, layers + 1), TRANSFER)
        body, ends = records[:, :, :layers], records.view(STEP)[:, :, layers]
        issued, ready = np.zeros((2, RUN_STEPS + 2, layers, ranks), np.int64)
        free = now = np.zeros(ranks, np.int64)
        speed = 1 + 0.01 * chance.standard_normal(ranks)
        for step in range(RUN_STEPS + 1):
            begin = _ORIGIN_NS + round((step - 1) * 1e9 / self.rate) + chance.integers(0, 20 * _US, ranks)
            begin[host == chance.integers(self.hosts)] += _delay(chance) * (chance.random() < 0.5)
            now = np.maximum(now + 20 * _US, begin)
            ends[step]["begin_ns"], ends[step]["arrival_ns"] = now, now
            for at in range(layers):
                later, position = divmod(at + 1, layers)
                last = rendezvous.last_issue_at(position, now)
                arrives = np.maximum(last, free) + self._transfer(chance, host)
                receives = np.arange(ranks) != source[position]
                free = np.full(ranks, arrives[receives].max()) if queue == SERIAL else np.where(receives, arrives, free)
                issued[step + later, position] = now
                ready[step + later, position] = np.where(receives, arrives, now + 1)
                now = now + self._compute(chance, speed, at)
                waits = body[step, :, at]
                waits["wait_begin_ns"] = now
                stalls = (np.arange(ranks) != source[at]) & (ready[step, at] > now)
                now = np.where(stalls, ready[step, at] + _WAKE_NS, now)
                waits["wait_end_ns"] = now
            ends[step]["end_ns"] = now
        body["issued_ns"] = issued[:-1].transpose(0, 2, 1)
        body["ready_ns"] = ready[:-1].transpose(0, 2, 1)
        return self._filled(records[1:], source)

    def _transfer(self, chance: np.random.Generator, host: _Int) -> _Int:
        """Return how long each rank's delivery takes."""
        transfer = chance.integers(_TRANSFER_NS - 20 * _US, _TRANSFER_NS, self.ranks)
        event = chance.random()
        if event < 0.01:
            transfer += _delay(chance)
        elif event < 0.025:
            transfer[host == chance.integers(self.hosts)] += _delay(chance)
        return transfer

    def _compute(self, chance: np.random.Generator, speed: npt.NDArray[np.float64], position: int) -> _Int:
        """Return how long each rank computes a layer."""
        compute = (_COMPUTE_NS * speed * (1 + 0.01 * chance.standard_normal(self.ranks))).astype(np.int64)
        if chance.random() < 0.015:
            compute[chance.integers(self.ranks)] += _delay(chance)
        compute[self.straggler] += 600 * _US * (position % 15 == 5)
        return compute

    def _filled(self, records: npt.NDArray[np.void], source: _Int) -> list[Records]:
        """Fill in all but the instants, and return the records of each rank."""
        steps, ranks, layers = RUN_STEPS, self.ranks, self.layers
        body, ends = records[:, :, :layers], records.view(STEP)[:, :, layers]
        step, layer = np.arange(steps)[:, np.newaxis, np.newaxis], np.arange(layers)
        own = source == np.arange(ranks)[:, np.newaxis]
        body["kind"] = Kind.TRANSFER
        body["step"] = step
        body["operation"] = step * layers + layer
        body["position"] = layer
        body["reach_position"] = (layer - 1) % layers
        body["source"] = source
        body["window"] = np.where(own, NO_WINDOW, layer % 2)
        body["flags"] = np.where(own, TransferFlag.OWN, 0) | np.where(layer == 0, TransferFlag.CROSSES_STEPS, 0)
        body["observed_clock"] = Observed.CALLBACK
        ends["kind"] = Kind.STEP
        ends["step"] = step[:, :, 0]
        ends["waits"] = layers
        ends["phase"] = Phase.DECODE
        flat = np.ascontiguousarray(records.transpose(1, 0, 2)).reshape(ranks, -1)
        flat["sequence"] = np.arange(1, flat.shape[1] + 1)
        return list(flat)
