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
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from swtrace.errors import TransportError
from swtrace.profile import Direction, Profile, Spread, Timing
from swtrace.series.communicator import GLOO, backend
from swtrace.series.device.copy_probe import HostCopies, time_copies
from swtrace.series.pull.copier import Copier
from swtrace.series.pull.publication import Publication, tensor_of
from swtrace.series.torch_transport import TorchTransport
from swtrace.settings import Settings
from swtrace.trace.clocks import now_ns, own_clock
from swtrace.trace.identity import BROADCAST, H2D, PULL
from swtrace.trace.share_folder import ShareFolder, folder_name
from swtrace.units import listed, size
from swtrace.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.group import Group
    from swtrace.series.transport import OnReady, Operation
    from swtrace.trace.identity import SeriesInfo

logger = logging.getLogger(__name__)

SMALLEST = 64 << 10
"""Bytes of the smallest transfer that is timed by default; each further size is four times as large."""
_REGION = 16 << 20
"""Sources read from at least as much memory in turn, because the layers of a model are not in a cache either."""
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
_LEAST = 0.2
"""Share of the time in which transfers must be under way. Otherwise the noise of the products exceeds their effect."""
_RESAMPLED, _HIGH = 100, 0.95
"""How often blocks are resampled, and the share of them that must give a stretch."""
_KNOWN = 2.0
"""A stretch is known if its 95 % quantile is below this multiple of its 5 % quantile."""
_LOOK_S = 0.5
"""How often to look for a transfer that failed."""


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


class Memory:
    """What a rank sends from, and what it receives into."""

    def __init__(self, own: int, extent: Extent) -> None:
        """Fill the layers with the number of the rank."""
        largest = extent.sizes[-1]
        self.layers = torch.full((max(largest, _REGION),), own % 251, dtype=torch.uint8)
        self.windows = torch.full((max(extent.concurrent) * largest,), 255, dtype=torch.uint8)


class Channel(Protocol):
    """One transport between the ranks, made for transfers of this probe."""

    name: str
    family: str

    def source(self, index: int) -> int:
        """Return the group rank that is the source of this rank's transfer with that number."""

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a transfer of a block, of which ``concurrent`` are under way at once."""

    def close(self) -> None:
        """Release the transport."""


@dataclass(frozen=True, slots=True)
class _Moved:
    """A layer, as far as a transport needs it."""

    position: int
    source: int


class BroadcastChannel:
    """Broadcasts of a gloo communicator of its own."""

    family = BROADCAST

    def __init__(self, group: Group, memory: Memory, timeout_s: float) -> None:
        """Make the communicator; all ranks must do so in the same order."""
        self._transport = TorchTransport(group, description="swtrace:probe", timeout_s=timeout_s)
        self.name = self._transport.name
        self.gather = self._transport.gather
        self._own, self._world = group.rank_in_group, group.world_size
        self._memory = memory

    def source(self, index: int) -> int:
        """Return the rank whose turn it is."""
        return index % self._world

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a broadcast from this rank's layers, or into one of its windows."""
        source = self.source(index)
        if source == self._own:
            buffer = _slot(self._memory.layers, nbytes, index)
        else:
            buffer = _slot(self._memory.windows, nbytes, index % concurrent)
        return self._transport.issue(buffer, _Moved(0, source), on_ready)

    def close(self) -> None:
        """Release the communicator."""
        self._transport.close()


class PullChannel:
    """Copies from the memory of the other ranks of this host."""

    name = family = PULL

    def __init__(self, folder: ShareFolder, group: Group, memory: Memory) -> None:
        """Publish this rank's layers. :meth:`open` follows, once every rank has done so.

        Raises:
            TransportError: the folder cannot be used, or has no room.
        """
        self._folder = folder
        self._own, self._world = group.rank_in_group, group.world_size
        self._copier: Copier | None = None
        self._origins: dict[int, Tensor] = {}
        folder.join()
        self._memory = memory
        Publication(folder, self._own).publish(f"layer-{self._own}", memory.layers)

    def open(self) -> None:
        """Map the other ranks' layers and start the copier.

        Raises:
            TransportError: a rank has published none.
        """
        for rank in range(self._world):
            if rank != self._own:
                mapping = self._folder.map(f"layer-{rank}", self._memory.layers.nbytes, writable=False)
                self._origins[rank] = tensor_of(mapping)
        self._copier = Copier("swtrace-copier probe", lambda: None)

    def source(self, index: int) -> int:
        """Return the other rank whose turn it is."""
        return (self._own + 1 + index % (self._world - 1)) % self._world

    def issue(self, index: int, nbytes: int, concurrent: int, on_ready: OnReady) -> Operation:
        """Start a copy into one of this rank's windows."""
        origin = _slot(self._origins[self.source(index)], nbytes, index)
        buffer = _slot(self._memory.windows, nbytes, index % concurrent)
        return self._copier.copy(buffer, origin, on_ready)  # type: ignore[union-attr]

    def close(self) -> None:
        """Finish the copies and leave the folder."""
        if self._copier is not None:
            self._copier.close()
        self._origins.clear()
        self._folder.leave()


def _slot(memory: Tensor, nbytes: int, index: int) -> Tensor:
    begin = index % (memory.nbytes // nbytes) * nbytes
    return memory[begin : begin + nbytes]


# ---- one block on one rank -------------------------------------------------------------------------


class Transfers:
    """The transfers of a block on this rank."""

    def __init__(self, channel: Channel, nbytes: int, concurrent: int, count: int, *, chained: bool = True) -> None:
        """Prepare; :meth:`issue` starts the first ones.

        Args:
            channel: moves them.
            nbytes: size of each.
            concurrent: how many are under way at once.
            count: how many there are.
            chained: whether the thread that completes one issues the next; otherwise the caller does.
        """
        self._channel = channel
        self._chained = chained
        self._nbytes = nbytes
        self._concurrent = concurrent
        self._count = count
        self._operations: list[Operation] = []
        self._completed: list[int] = []
        self._issuing = threading.Lock()
        self._all_ready = threading.Event()
        self.issued_ns: list[int] = []
        self.calls_ns: list[int] = []
        """Duration of each call that issued a transfer."""
        self.ready_ns = [0] * count

    def issue(self) -> None:
        """Issue transfers until enough are under way, whichever thread calls this."""
        while self._due() and self._issuing.acquire(blocking=False):  # else the thread that holds it looks again
            try:
                while self._due():
                    index = len(self.issued_ns)
                    begin = now_ns()
                    self.issued_ns.append(begin)
                    operation = self._channel.issue(index, self._nbytes, self._concurrent, self._observer(index))
                    self.calls_ns.append(now_ns() - begin)
                    self._operations.append(operation)
            finally:
                self._issuing.release()

    def _due(self) -> bool:
        return len(self.issued_ns) < min(self._count, len(self._completed) + self._concurrent)

    def _observer(self, index: int) -> OnReady:
        def observe(ready_ns: int) -> None:
            self.ready_ns[index] = ready_ns
            self._completed.append(index)
            if len(self._completed) == self._count:
                self._all_ready.set()
            elif self._chained:
                self.issue()

        return observe

    @property
    def over(self) -> bool:
        """Whether all are complete."""
        return self._all_ready.is_set()

    def wait(self) -> None:
        """Block until all are complete.

        Raises:
            RuntimeError: one failed.
        """
        while not self._all_ready.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Raise RuntimeError if a transfer failed."""
        for operation in list(self._operations):
            if operation.done():
                operation.wait()


class Beside(NamedTuple):
    """What a rank computed in a block, in ns."""

    beside: int
    """For how long a transfer was under way."""
    whole: int
    """How long the products took."""
    solo: float
    """How long they take without transfers."""


def stretch(blocks: Sequence[Beside]) -> Spread | None:
    """Return how many times as long products take while a transfer is under way, with the spread over resampled blocks.

    Without a transfer a product progresses at its own rate. So the work that is left for the time beside transfers is
    ``solo - (whole - beside)``, summed over all blocks.

    Returns:
        None if transfers were under way for too little of the time to know it.
    """
    if sum(block.beside for block in blocks) <= _LEAST * sum(block.whole for block in blocks):
        return None
    random = Random(0)  # noqa: S311 (a bootstrap, no secret)
    found = []
    for _ in range(_RESAMPLED):
        beside, whole, solo = map(sum, zip(*random.choices(blocks, k=len(blocks)), strict=True))
        if (alone := solo - (whole - beside)) > 0:
            found.append(beside / alone)
    return Spread.of(found) if len(found) > _HIGH * _RESAMPLED else None


class Compute:
    """What a rank computes meanwhile: products of a few tokens with matrices that do not fit a cache, as in a decode.

    A product takes about a tenth of a millisecond.
    """

    _WIDTH, _TOKENS, _MATRICES = 512, 8, 32
    _REFERENCE = 64
    """Products before a block, and again after it."""

    def __init__(self) -> None:
        """Make the matrices."""
        self._matrices = [torch.rand(self._WIDTH, self._WIDTH) for _ in range(self._MATRICES)]
        self._inputs = torch.rand(self._TOKENS, self._WIDTH)
        self._output = torch.empty(self._TOKENS, self._WIDTH)
        self._turn = 0

    def _reference_ns(self) -> float:
        """Return the mean duration of a product without transfers, in ns. All ranks compute at the same time."""
        begin = now_ns()
        for _ in range(self._REFERENCE):
            self._multiply()
        return (now_ns() - begin) / self._REFERENCE

    def beside(self, transfers: Transfers) -> Beside:
        """Issue transfers between products until they are complete; return what that did to the products."""
        reference_ns = self._reference_ns()
        transfers.issue()
        begin = checked = now_ns()
        number = 0
        while not transfers.over:
            self._multiply()
            transfers.issue()
            number += 1
            if now_ns() - checked > _LOOK_S * 1e9:
                checked = now_ns()
                transfers.look()
        end = now_ns()
        reference_ns = (reference_ns + self._reference_ns()) / 2
        return Beside(_covered(transfers, begin, end), end - begin, number * reference_ns)

    def _multiply(self) -> None:
        self._turn = (self._turn + 1) % self._MATRICES
        torch.mm(self._inputs, self._matrices[self._turn], out=self._output)


def _covered(transfers: Transfers, begin: int, end: int) -> int:
    """Return for how many of these nanoseconds at least one transfer was under way on this rank."""
    total, until = 0, begin
    for issued, ready in sorted(zip(transfers.issued_ns, transfers.ready_ns, strict=True)):
        total += max(0, min(ready, end) - max(issued, until))
        until = max(until, ready)
    return total


# ---- all blocks on all ranks ------------------------------------------------------------------------


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
        memory = Memory(group.rank_in_group, extent)
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
            pulled = _pull_channel(group, memory, settings, gather, run=about[0][0])
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


def _pull_channel(
    group: Group, memory: Memory, settings: Settings, gather: Callable[[object], list[object]], *, run: str
) -> PullChannel | str:
    """Return a channel that pulls; on all ranks, the same reason why there is none."""
    ranks = tuple(group.ranks)
    channel, problem = None, ""
    try:
        path = settings.ring_directory() / folder_name(f"probe-{run}", "probe", ranks)
        channel = PullChannel(ShareFolder(path, ranks, group.rank_in_group, settings.timeout_s), group, memory)
    except TransportError as error:
        problem = str(error)
    problems = [str(each) for each in gather(problem) if each]
    if not problems and channel is not None:
        channel.open()
        return channel
    if channel is not None:
        channel.close()
    return problems[0]


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
