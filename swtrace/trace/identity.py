"""Who wrote a ring, and what its series are: the constants that records refer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class RankKey(NamedTuple):
    """Names a rank across everything a reader sees: run id and global rank."""

    run_id: str
    rank: int


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """Who writes a ring. Pid and start time are for people: whether the writer lives is told by its lock."""

    run_id: str
    rank: int
    """Global rank, unique within the run."""
    host: str
    boot_id: str
    """The boot of the host: ranks that share it run under one kernel. Whether they share a clock says :attr:`clock`."""
    pid: int
    start_time_ns: int
    """CLOCK_REALTIME at which the ring was made."""
    model: str = ""
    version: str = ""
    """Version of swtrace that wrote the ring."""
    clock_offset: str = "0"
    """What the rank's time namespace adds to CLOCK_MONOTONIC: ``0``, or seconds and nanoseconds; ``unknown`` where
    /proc does not tell."""

    @property
    def key(self) -> RankKey:
        """The name under which readers know this rank."""
        return RankKey(self.run_id, self.rank)

    @property
    def clock(self) -> str:
        """Names the CLOCK_MONOTONIC of the rank: two ranks share one exactly if they share this."""
        return self.boot_id if self.clock_offset == "0" else f"{self.boot_id} {self.clock_offset}"


@dataclass(frozen=True, slots=True)
class UntracedRank:
    """A rank of a series that takes part and records nothing."""

    rank: int
    """Global rank."""
    reason: str


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """The constants of one series on one rank, written once into the ring's series table."""

    name: str
    start_layer: int
    num_layers: int
    prefetch_step: int
    windows: str
    """Window policy: ``rolling`` or ``static``."""
    window_count: int
    group_ranks: tuple[int, ...]
    """Global ranks of the group, in group order: ``group_ranks[group rank] = global rank``."""
    rank_in_group: int
    transport: str
    """``gloo``, ``nccl``, ``ideal``, ..."""
    rendezvous: str
    """From when an operation can move: ``source`` (source and receiver have issued it), ``tree`` (those on the way
    from the source have, too: gloo) or ``group`` (all ranks have: collectives that need everyone)."""
    clock: str
    """``host``, ``virtual`` or ``device``."""
    layer_bytes: int
    """Bytes of one layer's weight: what one broadcast moves, but for a tag."""
    owned_layers: int
    """Layers whose weight this rank keeps."""
    kind: str = "broadcast"
    """What fills the windows. Other prefetchers write the same records under their own kind."""
    refused: str = ""
    """Not empty: this was asked for and is not shared; the reason."""
    queue: str = "receiver"
    """What a delivery queues behind: ``serial`` (the operation before, until its latest receiver has it: operations
    move one at a time) or ``receiver`` (the deliveries to the same receiver)."""
    tag_bytes: int = 0
    """Bytes that the ownership check adds to each layer's payload; 0 where it is off."""
    untraced: tuple[UntracedRank, ...] = ()
    """Ranks of the group that record nothing of this series, as they told the others: nobody need wait for them."""

    @property
    def owned_bytes(self) -> int:
        """Bytes of the layers that this rank keeps."""
        return self.owned_layers * (self.layer_bytes + self.tag_bytes)

    @property
    def window_bytes(self) -> int:
        """Bytes of this rank's windows."""
        return self.window_count * (self.layer_bytes + self.tag_bytes)

    @property
    def replicated_bytes(self) -> int:
        """Bytes that full replication would hold on this rank."""
        return self.num_layers * self.layer_bytes

    def source(self, position: int) -> int:
        """Return the group rank that keeps the layer at ``position``."""
        return (self.start_layer + position) % len(self.group_ranks)
