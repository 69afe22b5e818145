"""A run whose records are written by real recorders, at instants that a test can compute.

Rank ``r`` of ``ranks`` keeps layer ``l`` where ``l % ranks == r``. In every step each layer takes
:data:`LAYER_NS`, a broadcast :data:`TRANSFER_NS`; the wait for the layer at :data:`STALLED_POSITION` stalls for
:data:`STALL_NS` on each receiver.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from swtrace.plan_file import Interval
from swtrace.trace.clocks import boot_id
from swtrace.trace.identity import H2D, Planned, RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.request_link import RequestLink
from swtrace.trace.schema import NO_WINDOW, Clock, Observed, Phase, StepFlag, TransferFlag, Untimed
from tests.support.simulated_pull import offloaded_info

LAYER_NS = 1_000_000
TRANSFER_NS = 600_000
STALL_NS = 300_000
STALLED_POSITION = 2
LAYER_BYTES = 4096
AS_PLANNED = Planned("0123456789ab", Interval(6.1e6, 5.9e6, 6.2e6), Interval(0.04, 0.03, 0.06), phase="decode")
"""A plan that such a run keeps to."""
SPANS_PER_STEP = 22
"""Two ranks: one step, five broadcasts and five waits each."""
REACH_NS = 10_000
"""Time from the beginning of a layer to its reach, and from there to its wait."""
_OBSERVED = {Clock.HOST: Observed.CALLBACK, Clock.VIRTUAL: Observed.EXACT, Clock.DEVICE: Observed.EVENT}


def series_info(rank: int, ranks: int = 2, *, start_layer: int = 0, **changes: object) -> SeriesInfo:
    """Return a rank's description of a series of five layers with prefetch step 1."""
    layers = 5
    owned = len([layer for layer in range(layers) if layer % ranks == rank])
    info = SeriesInfo(
        name="self_attn.o_proj",
        start_layer=start_layer,
        stack_layers=layers,
        layers=tuple(range(start_layer, start_layer + layers)),
        prefetch_step=1,
        windows="static",
        window_count=2,
        group_ranks=tuple(range(ranks)),
        rank_in_group=rank,
        transport="gloo",
        rendezvous="source",
        clock="host",
        layer_bytes=LAYER_BYTES,
        owned_layers=owned,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def identity(run_id: str, rank: int, start_time_ns: int | None = None) -> RankIdentity:
    """Return the identity of this process as a rank."""
    return RankIdentity(
        run_id=run_id,
        rank=rank,
        host="host-a",
        boot_id=boot_id(),
        pid=os.getpid(),
        start_time_ns=time.time_ns() if start_time_ns is None else start_time_ns,
        model="tiny",
        version="0.1.0",
    )


@dataclass
class RecordedRun:
    """The ranks of one run. This process writes all of them."""

    directory: Path
    run_id: str = "run-1"
    ranks: int = 2
    clock: Clock = Clock.HOST
    records: int = 4096
    base_ns: int = field(default_factory=time.monotonic_ns)
    steps: int = 0
    written: int = 0
    """Per rank."""
    recorders: list[Recorder] = field(default_factory=list)
    series: list[SeriesRecorder] = field(default_factory=list)
    infos: list[SeriesInfo] = field(default_factory=list)
    links: tuple[RequestLink, ...] = ()
    """Traced requests in the batch of every step that is written from now on."""
    hosts: tuple[str, ...] = ()
    """By rank. Each host has a clock of its own. If empty, all ranks are on one host."""
    planned: Planned | None = None
    """What the ranks' plan says."""
    ahead_ns: int = 0
    """By how much the clock of each host is ahead of the one before, in the order in which they appear."""

    def __post_init__(self) -> None:
        """Make one ring per rank, with one series each."""
        if self.clock is Clock.VIRTUAL:
            self.base_ns = 0
        for rank in range(self.ranks):
            self.recorders.append(Recorder.create(self.directory, self.identified(rank), records=self.records))
            self.infos.append(self.described(rank))
            self.series.append(self.recorders[-1].add_series(self.infos[-1]))

    @property
    def step_ns(self) -> int:
        """Return the duration of a step."""
        return 6 * LAYER_NS

    def identified(self, rank: int) -> RankIdentity:
        """Return the identity that a rank writes into its ring."""
        known = identity(self.run_id, rank)
        return replace(known, host=self.hosts[rank], boot_id=self.hosts[rank]) if self.hosts else known

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it when it makes its ring."""
        return series_info(rank, self.ranks, clock=self.clock.name.lower(), planned=self.planned)

    def info(self, rank: int) -> SeriesInfo:
        """Return the series as described by a rank."""
        return self.infos[rank]

    def clock_ahead_ns(self, rank: int) -> int:
        """Return by how much the clock of a rank's host is ahead of the first one's."""
        return list(dict.fromkeys(self.hosts)).index(self.hosts[rank]) * self.ahead_ns if self.hosts else 0

    def begin_ns(self, step: int) -> int:
        """Return when a step begins on every rank."""
        return self.base_ns + step * (self.step_ns + LAYER_NS)

    def write(self, steps: int = 1, *, aborted: bool = False) -> None:
        """Write whole steps on all ranks."""
        for _ in range(steps):
            for rank in range(self.ranks):
                self.write_rank(rank, self.steps, aborted=aborted)
            self.steps += 1
            self.written += self.info(0).num_layers + len(self.links) + 1

    def write_untimed(self, reason: Untimed = Untimed.SAMPLED) -> None:
        """Write an untimed step on all ranks."""
        for rank in range(self.ranks):
            self.write_rank_untimed(rank, reason)
        self.steps += 1
        self.written += 1

    def write_rank_untimed(self, rank: int, reason: Untimed) -> None:
        """Write one rank's record of the next step, untimed."""
        self.series[rank].step(
            step=self.steps,
            tokens=64,
            requests=4,
            phase=Phase.DECODE,
            waits=5,
            run_delay_us=7,
            steal_us=3,
            clock=self.clock,
            untimed=reason,
        )

    def write_every(self, n: int, steps: int) -> None:
        """Write steps of which every n-th is timed."""
        for _ in range(steps):
            if self.steps % n:
                self.write_untimed()
            else:
                self.write()

    def write_rank(self, rank: int, step: int, *, aborted: bool = False, ended: bool = True) -> None:
        """Write one rank's records of one step."""
        for position in range(self.info(rank).num_layers):
            self._transfer(rank, step, position)
        begin = self.begin_ns(step) + self.clock_ahead_ns(rank)
        for index, link in enumerate(self.links):
            self.series[rank].request(begin, link, step, index)
        if ended:
            self.series[rank].step(
                begin_ns=begin,
                arrival_ns=begin + REACH_NS,
                end_ns=begin + self.step_ns,
                step=step,
                tokens=64,
                requests=4,
                phase=Phase.DECODE,
                waits=5,
                run_delay_us=7,
                steal_us=3,
                flags=StepFlag.ABORTED if aborted else 0,
                clock=self.clock,
            )

    def _transfer(self, rank: int, step: int, position: int) -> None:
        info, series = self.info(rank), self.series[rank]
        ahead_ns = self.clock_ahead_ns(rank)
        begin = self.begin_ns(step) + ahead_ns + position * LAYER_NS
        wait_begin = begin + 2 * REACH_NS
        own = info.kind != H2D and info.source(position) == info.rank_in_group
        window = NO_WINDOW if own else position % 2
        reach_position = (position - 1) % info.num_layers
        flags = TransferFlag.OWN if own else TransferFlag(0)
        if step == 0 and position == 0:
            issued = ready = wait_end = wait_begin
            flags |= TransferFlag.PREFILLED
        else:
            issued = begin - LAYER_NS + REACH_NS
            if position == 0:
                issued = self.begin_ns(step - 1) + ahead_ns + (info.num_layers - 1) * LAYER_NS + REACH_NS
                flags |= TransferFlag.CROSSES_STEPS
            stalled = not own and position == STALLED_POSITION
            ready = wait_begin + STALL_NS if stalled else issued + TRANSFER_NS
            wait_end = ready + 5_000 if stalled else wait_begin + 1_000
        if own:
            wait_end = wait_begin
        else:
            token = series.window_issued(window, step, position, issued)
            series.window_ready(window, token, ready)
            series.window_in_use(window, token, wait_end)
        observed = _OBSERVED[self.clock]
        operation = step * info.num_layers + position
        instants = (issued, ready, wait_begin, wait_end)
        source = info.source(position)
        series.transfer(
            *instants, step, operation, position, reach_position, source, window, observed, flags, self.clock
        )

    def close(self) -> None:
        """Close the rings of all ranks."""
        for recorder in self.recorders:
            recorder.close()


@dataclass
class PullRun(RecordedRun):
    """Ranks that copy layers from each other's memory, each in steps of its own."""

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it when it makes its ring."""
        return series_info(rank, self.ranks, transport="pull", rendezvous="receiver", kind="pull")

    def write_each(self, *steps: int) -> None:
        """Write as many steps of each rank as given."""
        for rank, count in enumerate(steps):
            for step in range(count):
                self.write_rank(rank, step)


@dataclass
class OffloadedRun(PullRun):
    """Ranks that copy layers from host memory, each on its own."""

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it when it makes its ring."""
        return replace(offloaded_info(rank, 5, 2), layer_bytes=LAYER_BYTES)


@dataclass
class HostRun(RecordedRun):
    """The ranks of a run that are on one of several hosts, ``first`` to ``first + ranks - 1`` of a group."""

    host: str = "host-a"
    first: int = 0
    group: int = 4

    def identified(self, rank: int) -> RankIdentity:
        """Return the identity that a rank writes into its ring."""
        return replace(identity(self.run_id, self.first + rank), host=self.host, boot_id=f"boot of {self.host}")

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it when it makes its ring."""
        return series_info(self.first + rank, self.group, clock=self.clock.name.lower())
