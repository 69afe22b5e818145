"""Times what moves layers between the ranks of a group: the part of ``swtrace probe`` that every rank runs.

Transfers go through the same code as those of a series: gloo's broadcasts, or the copier that pulls. A *block* is a
number of transfers of one kind, of which a constant number is under way: as soon as one is complete, the next follows.
The ranks are the source in turn. In half of the blocks they compute meanwhile, and issue between two products, as a
forward does between two layers. Blocks of all kinds take turns until the time is used up, so that a disturbance of the
machine does not meet one kind only.

All ranks call the same functions in the same order. Every rank gets the same profile.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from swtrace.errors import TransportError
from swtrace.profile import Direction, Profile, Spread, Timing
from swtrace.series.communicator import GLOO, backend
from swtrace.series.probing.block import Beside, Compute, Transfers, stretch
from swtrace.series.probing.channels import BroadcastChannel, Channel, Memory, PullChannel, pull_channel
from swtrace.series.probing.host_copies import HostCopies, time_copies
from swtrace.settings import Settings
from swtrace.trace.clocks import own_clock
from swtrace.trace.identity import BROADCAST, H2D, PULL
from swtrace.units import listed, size
from swtrace.version import __version__

if TYPE_CHECKING:
    from swtrace.series.group import Group
    from swtrace.trace.identity import SeriesInfo

logger = logging.getLogger(__name__)

SMALLEST = 64 << 10
"""Bytes of the smallest transfer that is timed by default; each further size is four times as large."""
_ENOUGH = 200
"""Deliveries of a kind after which its spread is known well enough."""
_BLOCK_NS = 50_000_000
"""About how long a block lasts after the first round, unless a few transfers take longer."""
_MOST = 4096
"""Transfers of a block. A small copy takes a few microseconds, and a block must outlast many products."""
_STEADY = 8
"""The fewest transfers of a block between its beginning, when they start together, and its end."""
_START_S = 3.0
_START_CONCURRENT = (1, 2)
_START_TIMEOUT_S = 60.0
"""At the start of a series: how long to measure, what, and how long to wait for a peer."""
_KNOWN = 2.0
"""A stretch is known if its 95 % quantile is below this multiple of its 5 % quantile."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What to measure."""

    sizes: tuple[int, ...]
    """In bytes, ascending."""
    concurrent: tuple[int, ...] = (1, 2, 4)
    seconds: float = 10.0
    """When to stop, although spreads may be wide. Every kind has at least one block, however long that takes."""

    @classmethod
    def up_to(cls, largest: int, exact: Sequence[int] = (), *, seconds: float = 10.0) -> Extent:
        """Return an extent of the ``exact`` sizes, and of :data:`SMALLEST`, four times that, ... up to ``largest``."""
        sizes = {*exact}
        nbytes = SMALLEST
        while nbytes <= largest:
            sizes.add(nbytes)
            nbytes *= 4
        return cls(tuple(sorted(sizes)) or (largest,), seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the transfers of a block have in common."""

    channel: int
    nbytes: int
    concurrent: int
    computing: bool


@dataclass(slots=True)
class _Found:
    """What all blocks of a kind gave so far, on all ranks."""

    seconds: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """By source and receiver."""
    calls: list[float] = field(default_factory=list)
    """Seconds of each call that issued a transfer."""
    computed: list[Beside] = field(default_factory=list)
    each_ns: float = 0.0
    """Time from one completion to the next in the last block."""

    @property
    def samples(self) -> int:
        return sum(map(len, self.seconds.values()))


@dataclass(frozen=True, slots=True)
class _Block:
    """A block on one rank."""

    issued_ns: list[int]
    calls_ns: list[int]
    ready_ns: list[int]
    sources: list[int]
    computed: Beside | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a probe has got."""

    round: int
    kind: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found."""

    profile: Profile
    left_out: tuple[str, ...]
    """Transports that cannot be used here, and why."""


def probe(
    group: Group,
    extent: Extent,
    settings: Settings,
    *,
    copies: HostCopies | str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Time every transport that works between the ranks of a group. All ranks call this at the same time.

    Args:
        group: at least two ranks.
        extent: what to measure.
        settings: the folder in which ranks of one host meet, and how long to wait for a peer.
        copies: what copies from host memory to this rank's device; None without one; a reason if it cannot be used.
        progress: called on every rank before each block.

    Raises:
        RuntimeError: a rank is lost.
        TransportError: the ranks do not communicate through gloo.
    """
    if group.device_group is None:
        raise TransportError("the ranks share no torch world; time them with `swtrace probe` on their host")
    if (name := backend(group)) != GLOO:
        raise TransportError(f"transfers between devices ({name}) cannot be timed yet")
    with ExitStack() as stack:
        memory = Memory(group.rank_in_group, extent.sizes[-1], max(extent.concurrent))
        broadcast = BroadcastChannel(group, memory, settings.timeout_s)
        stack.callback(broadcast.close)
        gather = broadcast.gather
        channels: list[Channel] = [broadcast]
        about: list[Any] = gather((secrets.token_hex(8), own_clock(), socket.gethostname()))
        hosts = tuple(dict.fromkeys(host for _, _, host in about))
        left_out = []
        pulled: PullChannel | str
        one_clock = len({clock for _, clock, _ in about}) == 1
        if one_clock:
            pulled = pull_channel(group, memory, settings, gather, run=about[0][0])
        else:
            pulled = f"the ranks are on several hosts ({', '.join(hosts)})"
        if isinstance(pulled, str):
            left_out.append(f"{PULL}: {pulled}")
        else:
            channels.append(pulled)
            stack.callback(pulled.close)
        run = _Run(group, extent, channels, gather, progress, one_clock=one_clock)
        run.rounds()
        copied = tuple(time_copies(copies, extent.sizes, gather))
        left_out += [f"{H2D}: {each}" for each in copied if isinstance(each, str)]
        profile = Profile(
            swtrace=__version__,
            taken=datetime.now(UTC).isoformat(timespec="seconds"),
            hosts=hosts,
            ranks=group.world_size,
            device="cpu",
            clock="host",
            cores=len(os.sched_getaffinity(0)),
            threads=torch.get_num_threads(),
            timings=(*run.timings(), *(each for each in copied if isinstance(each, Timing))),
            directions=tuple(run.directions()),
        )
        gather(None)  # no rank releases what another one still reads
        return Outcome(profile, tuple(left_out))


_probed: set[tuple[int, ...]] = set()
"""Groups whose start-up probe was tried in this process."""


def probe_at_start(group: Group, info: SeriesInfo, settings: Settings) -> None:
    """Time the group of a series that was just post-processed, and write ``SWTRACE_PROBE``; once per group.

    The group of rank 0 writes the file. Whatever fails is a warning, because the series can run without a profile.
    """
    ranks = tuple(info.group_ranks)
    if settings.probe is None or ranks in _probed or group.world_size == 1:
        return
    _probed.add(ranks)
    sizes = tuple(sorted({SMALLEST, 16 * SMALLEST, info.layer_bytes}))
    limited = replace(settings, timeout_s=min(settings.timeout_s, _START_TIMEOUT_S))
    try:
        outcome = probe(group, Extent(sizes, _START_CONCURRENT, _START_S), limited)
        if ranks[0] == 0 and group.rank_in_group == 0:
            outcome.profile.write(settings.probe)
            logger.info("swtrace: wrote a profile of %s to %s", listed("rank", ranks), settings.probe)
    except Exception as error:  # noqa: BLE001 (a measurement must not keep a model from serving)
        if group.rank_in_group == 0:
            logger.warning(
                "swtrace: SWTRACE_PROBE=%s: %s were not timed: %s", settings.probe, listed("rank", ranks), error
            )


def _shifts(blocks: Sequence[_Block]) -> list[int]:
    """Return how far each rank's clock is ahead of rank 0's, in ns, from a block of broadcasts.

    The fastest broadcasts from rank 0 and to it are taken to be equally fast. Half of their time bounds the error.
    """

    def fastest(source: int, receiver: int) -> int:
        sent, received = blocks[source], blocks[receiver]
        each = zip(sent.sources, sent.issued_ns, received.ready_ns, strict=True)
        return min(ready - issued for which, issued, ready in each if which == source)

    return [0, *((fastest(0, rank) - fastest(rank, 0)) // 2 for rank in range(1, len(blocks)))]


class _Run:
    """Runs blocks and collects what they give."""

    def __init__(
        self,
        group: Group,
        extent: Extent,
        channels: Sequence[Channel],
        gather: Callable[[object], list[object]],
        progress: Callable[[Progress], None],
        *,
        one_clock: bool,
    ) -> None:
        self._one_clock = one_clock
        self._world = group.world_size
        self._extent = extent
        self._channels = channels
        self._gather = gather
        self._progress = progress
        self._compute = Compute()
        self._found = {
            _Kind(channel, nbytes, concurrent, computing): _Found()
            for nbytes in extent.sizes
            for channel in range(len(channels))
            for concurrent in extent.concurrent
            for computing in (False, True)
        }

    def rounds(self) -> None:
        """Run a block of every kind, and then of those whose spread is not known, until the time is used up."""
        begin, number = time.monotonic(), 0
        while True:
            number += 1
            kinds = [kind for kind, found in self._found.items() if found.samples < _ENOUGH]
            if not kinds:
                return
            for kind in kinds:
                elapsed = time.monotonic() - begin
                self._progress(Progress(number, self._describe(kind), elapsed))
                # Rank 0 decides for all. This also lets the block begin at the same time on all ranks.
                if self._gather(elapsed >= self._extent.seconds)[0] and number > 1:
                    return
                self._collect(kind, self._block(kind))

    def _describe(self, kind: _Kind) -> str:
        return f"{self._channels[kind.channel].name}, {size(kind.nbytes)}, {kind.concurrent} at once"

    def _block(self, kind: _Kind) -> _Block:
        each_ns = self._found[kind].each_ns or self._found[replace(kind, computing=False)].each_ns
        ends = 2 * kind.concurrent
        count = round(_BLOCK_NS / each_ns) if each_ns else 0
        count = min(max(count, _STEADY), _MOST) + ends
        channel = self._channels[kind.channel]
        transfers = Transfers(channel, kind.nbytes, kind.concurrent, count, chained=not kind.computing)
        computed = None
        if kind.computing:
            computed = self._compute.beside(transfers)
        else:
            transfers.issue()
            transfers.wait()
        sources = [channel.source(index) for index in range(count)]
        return _Block(transfers.issued_ns, transfers.calls_ns, transfers.ready_ns, sources, computed)

    def _collect(self, kind: _Kind, mine: _Block) -> None:
        """Add a block, without the transfers at its beginning and end, when others were under way than in between."""
        blocks: list[Any] = self._gather(mine)
        found = self._found[kind]
        found.each_ns = max((max(b.ready_ns) - min(b.issued_ns)) / len(b.issued_ns) for b in blocks)
        joint = self._channels[kind.channel].family == BROADCAST
        shifts = [0] * self._world if self._one_clock else _shifts(blocks)
        for receiver, block in enumerate(blocks):
            found.calls += [max(1, call) * 1e-9 for call in block.calls_ns]
            if block.computed is not None:
                found.computed.append(block.computed)
            for index in range(kind.concurrent, len(block.sources) - kind.concurrent + 1):
                source = block.sources[index]
                if source != receiver:
                    issued = block.issued_ns[index]
                    if joint:
                        issued = max(issued, blocks[source].issued_ns[index] + shifts[receiver] - shifts[source])
                    found.seconds[source, receiver].append(max(1, block.ready_ns[index] - issued) * 1e-9)

    def timings(self) -> Iterator[Timing]:
        """Yield the result of every kind."""
        for kind, found in self._found.items():
            channel = self._channels[kind.channel]
            yield Timing(
                transport=channel.name,
                family=channel.family,
                ranks=self._world,
                bytes=kind.nbytes,
                concurrent=kind.concurrent,
                computing=kind.computing,
                samples=found.samples,
                seconds=Spread.of(second for seconds in found.seconds.values() for second in seconds),
                issue_seconds=Spread.of(found.calls),
                compute_stretch=self._stretch(kind) if kind.computing else None,
            )

    def _stretch(self, kind: _Kind) -> Spread:
        """Return how a kind stretched the compute.

        Where its transfers were too short, or the machine too noisy, to know it, those of larger sizes count too. A
        short transfer costs little time, whatever its stretch.
        """
        found, blocks = None, list[Beside]()
        for nbytes in self._extent.sizes:
            if nbytes >= kind.nbytes:
                blocks += self._found[replace(kind, nbytes=nbytes)].computed
                found = stretch(blocks) or found
                if found is not None and found.p95 < _KNOWN * found.p5:
                    break
        return found or Spread.of([1.0])

    def directions(self) -> Iterator[Direction]:
        """Yield how long one transfer takes from each rank to each other one, of the largest size."""
        for kind, found in self._found.items():
            if kind.nbytes == self._extent.sizes[-1] and kind.concurrent == 1 and not kind.computing:
                for (source, receiver), seconds in sorted(found.seconds.items()):
                    name = self._channels[kind.channel].name
                    yield Direction(name, source, receiver, kind.nbytes, len(seconds), Spread.of(seconds))
