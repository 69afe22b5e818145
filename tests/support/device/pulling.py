"""Two ranks that pull from each other's device memory, for a simulated device and a GPU alike.

Each rank is a process of its own (:mod:`tests.support.replicas`) with its own rig. On a GPU, both use the same one, and
memory is opened by CUDA IPC. A simulated device's memory that others open is a file.
"""

from __future__ import annotations

import itertools
import mmap
import uuid
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from swtrace.errors import PeerLostError, TransportError
from swtrace.series.device.device_transport import DeviceTransport
from swtrace.series.pull.device_pull_transport import DevicePullTransport
from swtrace.series.pull.ipc_mover import CudaMemory, IpcMover, SharedMemory
from swtrace.series.pull.publication import tensor_of
from swtrace.series.transport import MovedLayer
from swtrace.trace.share_folder import ShareFolder
from tests.support.device.claims import LAYERS, US, Timing, mixture, timing
from tests.support.device.expected import Durations, Schedule
from tests.support.device.lone_rank import TRANSFER, Program
from tests.support.device.rig import Rig, SimulatedRig, Task
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock
from tests.support.patience import eventually, patience

OWNER, READER = RANKS = (0, 1)
"""Each owns layers; but only the reader's waits are looked at."""
COPY_NS = 700
"""What a copy takes on a simulated device."""


class SimulatedMemory:
    """Handles of a simulated device's memory: the names of files."""

    def __init__(self, rig: SimulatedRig, folder: Path) -> None:
        self._rig = rig
        self._folder = folder

    def settle(self) -> None:
        """Let the host wait for the device."""
        self._rig.catch_up()

    def export(self, payload: Tensor) -> object:
        """Write the payload to a file."""
        path = self._folder / f"memory-{uuid.uuid4()}"
        path.write_bytes(payload.numpy().tobytes())
        return str(path)

    def open(self, handle: Any) -> Tensor:
        """Map that file."""
        if not Path(handle).exists():
            raise RuntimeError("invalid handle")
        with Path(handle).open("r+b") as file:
            return tensor_of(mmap.mmap(file.fileno(), 0))

    def copy(self, buffer: Tensor, origin: Tensor) -> None:
        """Enqueue a copy."""
        self._rig.fill(Task("copy", 0), buffer, origin, COPY_NS)


class DelayedMover(IpcMover):
    """Copies that take a given time each, or as long as they do where that is 0."""

    def __init__(self, rig: Rig, memory: SharedMemory, folder: ShareFolder, own: int, durations: Durations) -> None:
        super().__init__(memory, folder, own)
        self.serving = False
        self.next = 0
        self.launch_ns = 0
        """What moving has cost the launching thread."""
        self.moved = 0
        """Copies enqueued or captured."""
        self._rig = rig
        self._durations = durations

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Enqueue a copy and its delay."""
        begun_ns = self._rig.device.host_ns()
        ns = self._durations.transfer[layer.position]
        self.moved += layer.source != self.own
        if ns and layer.source != self.own:
            self._rig.fill(Task(TRANSFER, layer.position), buffer, self.origin(layer), ns)
        else:
            super().move(buffer, layer)
        self.launch_ns += self._rig.device.host_ns() - begun_ns


class PullingProgram(Program):
    """A series on one of two ranks or more, which pulls."""

    def __init__(
        self, rig: Rig, folder: Path, durations: Durations, *, rank: int, ranks: int = 2, **options: Any
    ) -> None:
        self._folder = folder
        self._rank = rank
        super().__init__(rig, folder, durations, rank=rank, ranks=ranks, **options)
        transfers = zip(durations.transfer, self.owned, strict=True)
        received = Durations(durations.before, durations.linear, tuple(0 if own else ns for ns, own in transfers))
        self.truth = Schedule(received, self.prefetch_step, self.owned)

    def _connect(self, rank: int, ranks: int) -> tuple[Any, DeviceTransport]:
        rig: Any = self.rig
        memory: SharedMemory = (
            SimulatedMemory(rig, self._folder) if isinstance(rig, SimulatedRig) else CudaMemory(rig.memory)
        )
        share = ShareFolder(self._folder / "pull-x", tuple(range(ranks)), rank, patience())
        mover = DelayedMover(rig, memory, share, rank, self.durations)
        return mover, DevicePullTransport(rig.device, mover, len(self.contents))

    def close(self) -> None:
        """Wait until the other rank has finished too, because a rank that leaves ends the other's series."""
        say(self._folder, f"finished {self._rank}")
        for rank in RANKS:
            await_said(self._folder, f"finished {rank}")
        super().close()


def say(folder: Path, what: str) -> None:
    """Let other processes know."""
    (folder / what).touch()


def await_said(folder: Path, what: str) -> None:
    """Wait until some process has said it."""
    eventually((folder / what).exists, what)


def rig_of(kind: str) -> Rig:
    """Return a rig: ``simulated`` (a clock that drifts and ticks, and coarse events), ``exact`` or ``cuda``."""
    if kind == "cuda":
        from tests.support.device.cuda_rig import CudaRig

        return CudaRig()
    if kind == "exact":
        return SimulatedRig(SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=0))
    return SimulatedRig(SimulatedDevice(clock=DeviceClock(tick_ns=32), exact_events=False, call_ns=5 * US))


# ---- what each of the two ranks runs --------------------------------------------------------------


def timed(rank: int, kind: str, folder: str, transfer_ns: int, prefetch_step: int, replayed: bool) -> Timing | None:  # noqa: FBT001 (passed by position to a process)
    """Time the reader's waits, for copies of a known length; the owner runs no step, and has nothing to tell."""
    make = partial(PullingProgram, rank=rank)
    if rank == READER:
        return timing(
            rig_of(kind), Path(folder), transfer_ns, prefetch_step=prefetch_step, replayed=replayed, make=make
        )
    durations = Durations.even(LAYERS, before=0, linear=0, transfer=0)
    make(rig_of(kind), Path(folder), durations, prefetch_step=prefetch_step).close()
    return None


def mixed(
    rank: int, kind: str, folder: str, layers: int, prefetch_step: int, transfer_ns: int, steps: int
) -> tuple[int, int, int]:
    """Run a mixture of eager steps, replays, captures and forwards that die, twice as many steps on rank 1.

    Returns:
        Comparisons that must have been made, that were made, and that failed.
    """
    return mixture(
        rig_of(kind),
        Path(folder),
        layers=layers,
        prefetch_step=prefetch_step,
        transfer_ns=transfer_ns,
        steps=steps * (1 + rank),
        rank=rank,
        make=PullingProgram,
    )


class Ended(NamedTuple):
    """How a reader ended, whose owner was killed."""

    error: str
    moved: int
    """Copies enqueued between the death and the error."""
    steps: int
    """Steps that it ran before."""
    readings: tuple[int, int]
    """Comparisons before the death, and how many of them failed."""
    again: str
    """What it says to the next step."""


EAGER, REPLAYED, ANNOUNCED = HOW = ("eager", "replayed", "announced")
"""A step is run so: eagerly, by a replay that is marked, or by one that is announced only."""


def bereaved(rank: int, kind: str, folder: str, how: str, ranks: int = 2, victim: int = OWNER) -> Ended:
    """Run steps; say ``running`` and the rank once there were some, and run the next one after ``killed``.

    The victim says ``serving``, and waits for its end.
    """
    durations = Durations.even(LAYERS, before=20 * US, linear=30 * US, transfer=0)
    program = PullingProgram(rig_of(kind), Path(folder), durations, rank=rank, ranks=ranks)
    if rank == victim:
        say(Path(folder), "serving")
        await_said(Path(folder), "never")
    if how != EAGER:
        program.capture()

    def run() -> None:
        if how == EAGER:
            program.eager(1)
        elif how == REPLAYED:
            program.replay(1)
        else:
            program.series.announce_graph()
            program.rig.replay(program.graph)

    for _ in range(5):
        run()
    readings = program.rig.readings()
    say(Path(folder), f"running {rank}")
    await_said(Path(folder), "killed")
    moved = program.mover.moved
    errors = []
    for _ in range(2):
        try:
            run()
        except PeerLostError as error:
            errors.append(str(error))
    first, again = errors
    steps = program.series.statistics().steps
    Program.close(program)
    return Ended(first, program.mover.moved - moved, steps, readings, again)


def steps_on(rank: int, kind: str, folder: str) -> tuple[str, tuple[int, int]]:
    """Run steps until an error ends them; say ``running`` and the rank once there were some.

    Returns:
        The error, and how many comparisons were made and failed.
    """
    durations = Durations.even(LAYERS, before=20 * US, linear=30 * US, transfer=0)
    program = PullingProgram(rig_of(kind), Path(folder), durations, rank=rank)
    program.capture()
    for step in itertools.count():
        try:
            program.eager(1)
            program.replay(1)
        except PeerLostError as error:
            readings = program.rig.readings()
            Program.close(program)
            return str(error), readings
        program.rig.catch_up()
        if step == 3:
            say(Path(folder), f"running {rank}")
    raise AssertionError


def starts(rank: int, kind: str, folder: str) -> str:
    """Return why a rank cannot start; if it can, run a step and return ``started``."""
    durations = Durations.even(LAYERS, before=20 * US, linear=30 * US, transfer=0)
    try:
        program = PullingProgram(rig_of(kind), Path(folder), durations, rank=rank, traced=False)
    except TransportError as error:
        return str(error)
    program.eager(1)
    program.close()
    return "started"


def kill(process: Any) -> None:
    """Kill a rank's process, and wait for its end."""
    process.kill()
    process.join()


def ended(owner: int, reader: int) -> str:
    """Return the error of a reader whose owner has died; the first layer of an owner has its number."""
    return (
        f"series 's', rank {reader}, layer {owner}: did not arrive from rank {owner}, its source (rank {owner} died): "
        f"rank {owner} has ended, and its layers were in its device's memory; restart all ranks of the series"
    )


OWNER_ENDED = ended(OWNER, READER)
