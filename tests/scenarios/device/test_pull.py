"""Two ranks that pull on a device: what ``tests/gpu`` asks of a GPU, asked of a simulated device, which is exact."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.trace.schema import Observed
from tests.support.device.claims import LAYERS, MS, STEPS, US, check, uneven
from tests.support.device.pulling import (
    ANNOUNCED,
    EAGER,
    HOW,
    OWNER,
    OWNER_ENDED,
    READER,
    PullingProgram,
    await_said,
    bereaved,
    ended,
    kill,
    mixed,
    rig_of,
    say,
    starts,
    steps_on,
    timed,
)
from tests.support.replicas import replica, run_replicas

SIMULATED = "simulated"


@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("prefetch_step", [1, 2])
@pytest.mark.parametrize("transfer_ns", [100 * US, 10 * MS])
def test_stall_and_slack_are_the_devices_own(
    tmp_path: Path, transfer_ns: int, prefetch_step: int, *, replayed: bool
) -> None:
    """Copies of a known length from an owner that runs no step: every wait is told to 2 us, no read is stale."""
    _, found = run_replicas(2, timed, SIMULATED, str(tmp_path), transfer_ns, prefetch_step, replayed)
    assert found is not None
    assert found.waits
    assert found.worst_ns < 2 * US
    assert found.untimed == 0
    assert found.readings == (2 * STEPS * LAYERS, 0)
    stalls = [wait.true_stall_ns > 0 for wait in found.waits if wait.position > 2 * prefetch_step]
    assert all(stalls) if transfer_ns > found.compute_ns else not any(stalls)


def exactly(rank: int, folder: str, layers: int, k: int, windows: str) -> bool:
    """Compare every record of the reader with arithmetic; the owner runs no step."""
    durations = uneven(layers, seed=layers * 10 + k)
    durations = replace(durations, transfer=tuple(max(1, ns) for ns in durations.transfer))
    rig = rig_of("exact")
    program = PullingProgram(rig, Path(folder), durations, prefetch_step=k, windows=windows, rank=rank)
    if rank == READER:
        program.eager(STEPS)
        if windows == "static":
            program.capture()
            program.replay(1)
        rig.catch_up()
    program.close()
    if rank == READER:
        check(program, Observed.EVENT, Observed.STAMP)
        steps = STEPS + (windows == "static")
        assert rig.readings() == (2 * steps * layers, 0)
    return True


@pytest.mark.parametrize(("layers", "k", "windows"), [(2, 0, "static"), (7, 1, "rolling"), (8, 3, "static")])
def test_steps_are_recorded_as_the_durations_make_them(tmp_path: Path, layers: int, k: int, windows: str) -> None:
    """To the nanosecond; a copy queues behind this rank's copies only, and an owned layer takes no time."""
    assert run_replicas(2, exactly, str(tmp_path), layers, k, windows) == [True, True]


@pytest.mark.parametrize("transfer_ns", [0, 200 * US])
@pytest.mark.parametrize(("layers", "prefetch_step"), [(7, 1), (8, 2)])
def test_any_mixture_reads_every_layer_right(tmp_path: Path, layers: int, prefetch_step: int, transfer_ns: int) -> None:
    """Eager steps, replays, captures and forwards that die, in different numbers on the two ranks."""
    for reads, made, failed in run_replicas(2, mixed, SIMULATED, str(tmp_path), layers, prefetch_step, transfer_ns, 40):
        assert reads
        assert (made, failed) == (reads, 0)


@pytest.mark.parametrize("how", HOW)
def test_the_death_of_an_owner_ends_the_next_step_before_it_reads(tmp_path: Path, how: str) -> None:
    """The error names series, layer and owner; nothing is copied from its memory any more."""
    with (
        replica(OWNER, bereaved, SIMULATED, str(tmp_path), how) as owner,
        replica(READER, bereaved, SIMULATED, str(tmp_path), how) as reader,
    ):
        await_said(tmp_path, "serving")
        await_said(tmp_path, f"running {READER}")
        kill(owner.process)
        say(tmp_path, "killed")
        found = reader.result()
    steps = 4 if how == ANNOUNCED else 5  # an announced step counts from the next call on
    assert found == (OWNER_ENDED, 0, steps, (2 * 5 * LAYERS, 0), OWNER_ENDED)


def test_of_several_owners_the_one_that_died_is_named(tmp_path: Path) -> None:
    """By every rank that is left, with the first of its layers."""
    victim = 2
    with ExitStack() as stack:
        processes = [
            stack.enter_context(replica(rank, bereaved, SIMULATED, str(tmp_path), EAGER, 3, victim))
            for rank in range(3)
        ]
        for said in ("serving", "running 0", "running 1"):
            await_said(tmp_path, said)
        kill(processes[victim].process)
        say(tmp_path, "killed")
        errors = [processes[reader].result().error for reader in range(2)]
    assert errors == [ended(victim, 0), ended(victim, 1)]


def test_a_reader_in_the_middle_of_its_steps_ends_too(tmp_path: Path) -> None:
    """With the same error, however far it was. All reads are right, because a simulated memory outlives its process."""
    with (
        replica(OWNER, steps_on, SIMULATED, str(tmp_path)) as owner,
        replica(READER, steps_on, SIMULATED, str(tmp_path)) as reader,
    ):
        await_said(tmp_path, f"running {READER}")
        await_said(tmp_path, f"running {OWNER}")
        kill(owner.process)
        error, (made, failed) = reader.result()
    assert error == OWNER_ENDED
    assert made >= 2 * 4 * LAYERS
    assert failed == 0


def test_an_owner_that_comes_back_is_refused_until_its_readers_have_ended(tmp_path: Path) -> None:
    """They hold handles of its former memory, and still end at their next step; then all start anew."""
    with (
        replica(OWNER, bereaved, SIMULATED, str(tmp_path), EAGER) as owner,
        replica(READER, bereaved, SIMULATED, str(tmp_path), EAGER) as reader,
    ):
        await_said(tmp_path, "serving")
        await_said(tmp_path, f"running {READER}")
        kill(owner.process)
        for _ in range(2):
            with replica(OWNER, starts, SIMULATED, str(tmp_path)) as again:
                assert again.result() == (
                    "rank 0 of this run has ended, and its layers with it; it cannot join those that are left "
                    "(rank 1): restart them too"
                )
        say(tmp_path, "killed")
        assert reader.result().error == OWNER_ENDED
    for said in itertools.chain(tmp_path.glob("finished *"), tmp_path.glob("memory-*")):
        said.unlink()
    assert run_replicas(2, starts, SIMULATED, str(tmp_path)) == ["started", "started"]
    assert not list(tmp_path.glob("pull-*"))
