"""The writer of a ring and its series: the constants that records refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple, Self
from urllib.parse import unquote

from swtrace.plan_file import Interval
from swtrace.share import NONE, Share, extent
from swtrace.trace.clocks import clock_name
from swtrace.units import counted

BROADCAST, PULL, H2D = KINDS = ("broadcast", "pull", "h2d")
"""Kinds of transfers: a broadcast to all ranks, a rank's own copy from the owner's memory, and a copy from host memory
to the device that other code makes, and that is only watched."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How sentences speak of layers that one kind of transfer brings."""

    move: str
    """What brings a layer."""
    share: str
    """What is done with layers that need not stay on every rank, as a verb ..."""
    shared: str
    """... as a participle ..."""
    sharing: str
    """... and as a noun."""
    source: str
    """Where a layer comes from."""
    own: str
    """What a layer is on the rank that stores it and waits for nothing; empty if no rank does."""
    window: str
    """What a layer is moved into."""


_SHARED = Terms("broadcast", "share", "shared", "sharing", "its owner", "own layer", "window")
TERMS = {
    BROADCAST: _SHARED,
    PULL: replace(_SHARED, move="copy"),
    H2D: Terms("copy", "offload", "offloaded", "offloading", "host memory", "", "buffer"),
}
"""By kind."""


def terms(kind: str) -> Terms:
    """Return the words for a kind of transfer; those of copies between ranks for layers that nothing moves."""
    return TERMS.get(kind, TERMS[PULL])


class RankKey(NamedTuple):
    """Identifies a rank across all runs that a reader sees: run id and global rank."""

    run_id: str
    rank: int


_WORKLOAD_VARIABLES = {
    "k8s_pod_name": "POD_NAME",
    "k8s_namespace_name": "POD_NAMESPACE",
    "k8s_node_name": "NODE_NAME",
    "slurm_job_id": "SLURM_JOB_ID",
    "slurm_job_name": "SLURM_JOB_NAME",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What Kubernetes or Slurm runs a rank as. Empty texts are unknown.

    The fields are OpenTelemetry's resource attributes, with ``_`` for ``.``, and so are the labels of
    ``swtrace_rank_info``.
    """

    k8s_pod_name: str = ""
    k8s_namespace_name: str = ""
    k8s_node_name: str = ""
    k8s_job_name: str = ""
    slurm_job_id: str = ""
    slurm_job_name: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the rank's environment: ``OTEL_RESOURCE_ATTRIBUTES``, else the variable of each field."""
        pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
        given = {name.strip(): unquote(text.strip()) for name, _, text in pairs}
        found = {
            each.name: given.get(_attribute(each.name)) or environ.get(_WORKLOAD_VARIABLES.get(each.name, ""), "")
            for each in fields(cls)
        }
        return cls(**{name: text.strip() for name, text in found.items()})

    def attributes(self) -> dict[str, str]:
        """Return what is known as resource attributes."""
        return {_attribute(name): text for name, text in asdict(self).items() if text}


def _attribute(field: str) -> str:
    return field.replace("_", ".")


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """The writer of a ring. Pid and start time are only informative; the lock shows whether the writer is alive."""

    run_id: str
    rank: int
    """Global rank, unique within the run."""
    host: str
    boot_id: str
    """The boot of the host. Ranks that share it run under one kernel; :attr:`clock` says whether they share a clock."""
    pid: int
    start_time_ns: int
    """CLOCK_REALTIME at which the ring was made."""
    model: str = ""
    version: str = ""
    """Version of swtrace that wrote the ring."""
    clock_offset: str = "0"
    """What the rank's time namespace adds to CLOCK_MONOTONIC: ``0``, or seconds and nanoseconds; ``unknown`` if /proc
    does not show it."""
    workload: Workload = Workload()

    @property
    def key(self) -> RankKey:
        """The key under which readers know this rank."""
        return RankKey(self.run_id, self.rank)

    @property
    def clock(self) -> str:
        """Identifies the rank's CLOCK_MONOTONIC: two ranks share that clock if and only if this is equal."""
        return clock_name(self.boot_id, self.clock_offset)


@dataclass(frozen=True, slots=True)
class UntracedRank:
    """A rank that takes part in a series but records nothing."""

    rank: int
    """Global rank."""
    reason: str


@dataclass(frozen=True, slots=True)
class Planned:
    """What the plan that a run was started with says about a series."""

    digest: str
    """Identifies the plan."""
    step_ns: Interval
    """Mean time of a step, on the rank with the longest."""
    stall_ratio: Interval
    """Of the most stalled rank."""
    phase: str = ""
    """Phase of the steps that the prediction is about; empty if it is about all."""
    tokens: float | None = None
    """Mean number of tokens in their batches; None if unknown."""
    differs: str = ""
    """How the run differs from the plan, so that the prediction is about another run; empty if it does not."""


@dataclass(frozen=True, slots=True)
class Offload:
    """How layers that are copied from host memory were chosen, and what they are copied into."""

    group_size: int
    """Decoder layers per group."""
    num_in_group: int
    """How many of each group are offloaded: the last ones."""
    buffer_bytes: int
    """Bytes of all buffers on the device."""
    pinned: bool
    """Whether the host's memory is pinned. Otherwise a copy blocks the host and is not asynchronous."""
    params: tuple[str, ...] = ()
    """Parts of the names of the parameters that are offloaded (``--offload-params``), sorted; empty: all parameters."""
    slots_may_collide: bool = False
    """Whether this vLLM (before vllm#54975) copies layers into buffers that are still needed, if the prefetch step is
    smaller than the number of offloaded layers and does not divide it."""


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """The constants of one series on one rank, written once into the ring's series table."""

    name: str
    start_layer: int
    """First decoder layer of the rank."""
    stack_layers: int
    """Decoder layers of the rank, shared or not."""
    layers: tuple[int, ...]
    """Absolute indexes of the shared layers by position, in ascending order."""
    prefetch_step: int
    windows: str
    """Window policy: ``rolling`` or ``static``."""
    window_count: int
    group_ranks: tuple[int, ...]
    """Global ranks of the group, in group order: ``group_ranks[group rank] = global rank``."""
    rank_in_group: int
    transport: str
    """``gloo``, ``nccl``, ``ideal``, ``pull``, ``h2d``, ...; ``none`` if the series is only observed."""
    rendezvous: str
    """Who must have issued an operation before its data can move: ``source`` (the source and the receiver), ``tree``
    (these and the ranks on the way: gloo), ``group`` (all ranks, in collectives that need everyone) or ``receiver``
    (only the receiver, which copies the layer from its owner's memory)."""
    clock: str
    """``host``, ``virtual`` or ``device``."""
    layer_bytes: int
    """Bytes of one layer's weight, which is what one transfer moves, apart from a tag. If layers differ, their mean."""
    owned_layers: int
    """Number of layers whose weight this rank stores."""
    kind: str = BROADCAST
    """What fills the windows: one of :data:`KINDS`, or ``none`` if the series is only observed."""
    refused: str = ""
    """Why the series was requested but is not shared; empty if it is shared."""
    queue: str = "receiver"
    """What a delivery queues behind: ``serial`` (the previous operation, until its latest receiver has it, because
    operations move one at a time), ``stream`` (the copy before, on the one stream that makes all copies) or
    ``receiver`` (earlier deliveries to the same receiver; in a pull series, what the rank's own copier copied
    before)."""
    tag_bytes: int = 0
    """Bytes that the ownership check adds to each layer's payload; 0 if the check is off."""
    untraced: tuple[UntracedRank, ...] = ()
    """Ranks of the group that reported that they record nothing of this series, so readers need not wait for them."""
    planned: Planned | None = None
    """None if the rank was started without a plan for this series."""
    offload: Offload | None = None
    """Only if the kind is ``h2d``."""

    @property
    def shared(self) -> bool:
        """Whether the layers are shared. Otherwise the series is observed: each rank stores all of them."""
        return self.transport != NONE

    def layers_of(self, share: Share) -> tuple[int, ...]:
        """Return the layers of this rank's stack that a share selects, by absolute index."""
        return share.layers(self.start_layer, self.start_layer + self.stack_layers)

    @property
    def offloaded(self) -> bool:
        """Whether the layers are in host memory, from which other code copies them."""
        return self.kind == H2D

    @property
    def from_ranks(self) -> bool:
        """Whether each layer comes from the rank that stores it."""
        return bool(self.terms.own)

    @property
    def num_layers(self) -> int:
        """Number of shared layers."""
        return len(self.layers)

    @property
    def layer_term(self) -> str:
        """What positions and the prefetch step count, in words."""
        return "layer" if self.num_layers == self.stack_layers else f"{self.terms.shared} layer"

    @property
    def extent(self) -> str:
        """Which layers are shared, in words: ``layers 0-60``, or ``31 of 61 layers shared``, or ``offloaded``."""
        return extent(self.layers, self.start_layer, self.stack_layers, self.terms.shared)

    @property
    def sharing(self) -> str:
        """How the layers are shared, in words: ``prefetch step 1, static windows, gloo``; or that they are not."""
        if not self.shared:
            return "observed, not shared"
        return f"prefetch step {self.prefetch_step}, {self.places}, {self.transport}"

    @property
    def places(self) -> str:
        """What layers are moved into, in words: ``static windows``, or ``2 buffers``."""
        if self.offloaded:
            return counted(self.window_count, self.terms.window)
        return f"{self.windows} {self.terms.window}s"

    @property
    def lockstep(self) -> bool:
        """Whether all ranks of the group run the same steps.

        In a pull series, no rank waits for another. Each runs and numbers its own steps.
        """
        return self.rendezvous != "receiver"

    @property
    def terms(self) -> Terms:
        """How sentences speak of these layers."""
        return terms(self.kind)

    @property
    def owned_bytes(self) -> int:
        """Bytes of the layers that this rank stores."""
        return self.owned_layers * (self.layer_bytes + self.tag_bytes)

    @property
    def window_bytes(self) -> int:
        """Bytes of this rank's windows."""
        if self.offload is not None:
            return self.offload.buffer_bytes
        return self.window_count * (self.layer_bytes + self.tag_bytes)

    @property
    def replicated_bytes(self) -> int:
        """Bytes that the shared layers would take on this rank without sharing."""
        return self.num_layers * self.layer_bytes

    def source(self, position: int) -> int:
        """Return the group rank that stores the layer at ``position``; in an observed series this rank, as all do."""
        if not self.shared:
            return self.rank_in_group
        return (self.start_layer + position) % len(self.group_ranks)
