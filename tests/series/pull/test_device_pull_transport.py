"""A pull series on a simulated device: what its start leaves behind, and what it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swtrace.errors import PeerLostError
from tests.support.device.expected import Durations
from tests.support.device.pulling import RANKS, READER, PullingProgram, SimulatedMemory, await_said, rig_of, say
from tests.support.replicas import run_replicas

DURATIONS = Durations.even(5, before=20_000, linear=30_000, transfer=0)


def started(rank: int, folder: str) -> tuple[Any, ...]:
    """Start; return how the series describes itself, and what is in the share folder."""
    program = PullingProgram(rig_of("exact"), Path(folder), DURATIONS, rank=rank, traced=False)
    say(Path(folder), f"started {rank}")
    for other in RANKS:
        await_said(Path(folder), f"started {other}")
    files = {path.name.partition("-")[0] for path in Path(folder, "pull-x").iterdir()}
    info = program.series.info
    program.close()
    return info.transport, info.rendezvous, info.queue, info.clock, files


def test_nothing_remains_in_host_memory_but_handles(tmp_path: Path) -> None:
    """What was loaded is removed once all ranks have it, and at the end everything is."""
    for told in run_replicas(2, started, str(tmp_path)):
        assert told == ("pull", "receiver", "receiver", "device", {"rank", "said", "layer"})
    assert not (tmp_path / "pull-x").exists()


def finds_nothing(rank: int, folder: str) -> str:
    """Start; the reader cannot open a layer."""

    def refuse(_memory: SimulatedMemory, _handle: object) -> None:
        raise RuntimeError("CUDA error: invalid resource handle")

    if rank == READER:
        SimulatedMemory.open = refuse  # type: ignore[assignment, method-assign]
    try:
        program = PullingProgram(rig_of("exact"), Path(folder), DURATIONS, rank=rank, traced=False)
    except PeerLostError as error:
        return str(error)
    finally:
        say(Path(folder), f"finished {rank}")
    program.close()
    return "started"


def test_a_layer_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """With its owner and the device's own error."""
    assert run_replicas(2, finds_nothing, str(tmp_path)) == [
        "started",
        "series 's', rank 1, layer 0: did not arrive from rank 0, its source: CUDA error: invalid resource handle",
    ]
