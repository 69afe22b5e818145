"""Graphs of whole forwards: announced, unseen, broken off and refused; the circle goes on as it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swtrace.errors import OrderError
from swtrace.trace import records as columns
from swtrace.trace.schema import RUN_STEPS, Kind, StepFlag, TransferFlag, Untimed
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import ForwardDiedError, Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice

LAYERS = 7
STEP = 2_000_000
"""In ns: longer than a step takes the device."""


@pytest.fixture(params=[500, 200_000], ids=["fast", "slow"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    """Return a series whose transfers would overtake their readers (fast), or are waited for (slow)."""
    durations = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=request.param)
    return Program(SimulatedRig(SimulatedDevice()), tmp_path, durations, prefetch_step=2)


def steps(program: Program) -> Any:
    records = program.records()
    return records[records["kind"] == Kind.STEP].view(columns.STEP)


def finish(program: Program, reads: int) -> None:
    """Close, and see that all reads and the last step's broadcasts were as they must be."""
    rig = program.rig
    assert isinstance(rig, SimulatedRig)
    operations = program.series.statistics().operations
    assert operations == LAYERS * program.series.statistics().steps
    assert rig.readings() == (2 * reads, 0)
    assert rig.overlaps == 0
    program.close()


def launch(program: Program) -> None:
    """Replay the graph as a framework does, without a notification."""
    program.rig.replay(program.graph)
    program.mover.next = 0


def test_a_graph_of_a_partial_series_is_replayed(tmp_path: Path) -> None:
    """Every third layer is shared: eager steps, a capture and replays read the right layers, which errors name."""
    durations = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=200_000)
    program = Program(SimulatedRig(SimulatedDevice()), tmp_path, durations, prefetch_step=2, start_layer=4, every=3)
    program.eager(2)
    program.capture()
    for _ in range(2):
        program.rig.pause(STEP)
        with program.series.step():
            program.series.announce_graph()
            launch(program)
    with pytest.raises(OrderError, match=r"layer 10: reached out of order; layer 4 comes next"):
        program.series.reach(10)
    finish(program, 4 * LAYERS)


def test_a_graph_announced_in_a_marked_step_is_that_steps_replay(program: Program) -> None:
    """It is timed like any other, and eager steps before and after are as well."""
    program.eager(1)
    program.capture()
    for _ in range(3):
        program.rig.pause(STEP)
        with program.series.step():
            program.series.announce_graph()
            launch(program)
    program.rig.pause(STEP)
    program.eager(1)
    finish(program, 5 * LAYERS)
    told = steps(program)
    assert told["untimed"].tolist() == [Untimed.TIMED] * 5
    assert told["waits"].tolist() == [LAYERS] * 5


def test_replays_outside_of_steps_are_counted_and_untimed(program: Program) -> None:
    """Without marked steps, a replay is detected when the next one is announced: a step without instants."""
    program.series.announce_graph()
    program.capture()
    assert program.series.statistics().steps == 0, "what was announced was captured: no step"
    for _ in range(3):
        program.series.announce_graph()
        launch(program)
        program.rig.pause(STEP)
    program.series.announce_graph()
    assert program.series.statistics().operations == 3 * LAYERS
    launch(program)
    program.rig.pause(STEP)
    program.eager(2)
    assert program.series.statistics().steps == 6
    finish(program, 6 * LAYERS)
    assert steps(program)["untimed"].tolist() == [Untimed.REPLAY] * 4 + [Untimed.TIMED] * 2


def test_a_capture_that_breaks_off_leaves_everything_as_it_was(program: Program) -> None:
    """The forward dies amid its capture: no step, no broadcast; eager steps go on, and the next capture works."""
    program.eager(1)
    before = program.series.statistics().operations
    moved_next = program.mover.next
    with pytest.raises(ForwardDiedError), program.rig.capture(program.rig.graph()):
        program.forward(stop_at=4)
    assert program.series.statistics().operations == before
    program.mover.next = moved_next
    program.eager(1)
    program.capture()
    program.replay(1)
    finish(program, 3 * LAYERS)


def break_off(program: Program) -> None:
    """Let a forward fail during its capture."""
    moved_next = program.mover.next
    with pytest.raises(ForwardDiedError), program.rig.capture(program.rig.graph()):
        program.forward(stop_at=4)
    program.mover.next = moved_next


def test_a_capture_right_after_one_that_broke_off_is_whole(program: Program) -> None:
    """Nothing of the first attempt remains in the second one, and its replays are ordinary steps."""
    program.eager(1)
    break_off(program)
    program.capture()
    program.replay(2)
    finish(program, 3 * LAYERS)
    assert steps(program)["waits"].tolist() == [LAYERS] * 3


def test_a_marked_step_right_after_a_capture_that_broke_off_is_whole(program: Program) -> None:
    """An open step is ended as usual, and no broadcast is invented."""
    program.forward()
    program.truth.eager(launched_ns=0)
    break_off(program)
    program.eager(1)
    finish(program, 2 * LAYERS)
    assert steps(program)["flags"].tolist() == [StepFlag.IMPLICIT_END, 0]


def test_two_forwards_in_one_graph_are_refused(program: Program) -> None:
    """A graph that reaches its layers twice is no step: the second time raises."""
    with program.rig.capture(program.rig.graph()):
        for position in range(LAYERS):
            program.series.reach(position)
            program.series.wait(position)
        with pytest.raises(OrderError, match="reached out of order while a graph is captured"):
            program.series.reach(0)
        program.series.join()


def test_a_graph_that_passes_a_linear_by_says_so_in_its_steps(program: Program) -> None:
    """Its replays count its waits, and the series reports how many layers had none."""
    moved_next = program.mover.next
    program.graph = program.rig.graph()
    with program.rig.capture(program.graph):
        for position in range(LAYERS):
            program.series.reach(position)
            if position != 5:
                program.series.wait(position)
        program.series.join()
    program.mover.next = moved_next
    program.replay(2)
    program.rig.catch_up()
    assert program.series.most_unwaited == 1
    program.close()
    assert steps(program)["waits"].tolist() == [LAYERS - 1] * 2


def test_stamps_of_an_untimed_replay_are_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """A graph passes a linear by that the graph before it had waited for, in a step that was not timed: no wait."""
    durations = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=500)
    program = Program(SimulatedRig(SimulatedDevice()), tmp_path, durations, prefetch_step=2, time_every=2)
    program.capture()
    whole = program.graph
    moved_next = program.mover.next
    part = program.rig.graph()
    with program.rig.capture(part):
        for position in range(LAYERS):
            program.series.reach(position)
            if position != 5:
                program.series.wait(position)
        program.series.join()
    program.mover.next = moved_next
    for graph in (*[whole] * 2 * RUN_STEPS, part):
        program.graph = graph
        program.replay(1)
        program.rig.pause(STEP)
    program.close()
    told = program.records()
    of_last = told[(told["kind"] == Kind.TRANSFER) & (told["step"] == 2 * RUN_STEPS) & (told["position"] == 5)]
    assert of_last["flags"].tolist() == [TransferFlag.UNWAITED]
    assert steps(program)["untimed"].tolist() == [
        *[Untimed.TIMED] * RUN_STEPS,
        *[Untimed.SAMPLED] * RUN_STEPS,
        Untimed.TIMED,
    ]


def test_a_graph_of_a_part_of_a_forward_is_refused(program: Program) -> None:
    """The join says so; nothing was issued, and the series goes on."""
    program.eager(1)
    moved_next = program.mover.next
    with program.rig.capture(program.rig.graph()):
        for position in range(4):
            program.series.reach(position)
            program.series.wait(position)
        with pytest.raises(OrderError, match="captured from 4 of 7 layers"):
            program.series.join()
    with pytest.raises(OrderError, match="none was captured"), program.series.replay():
        pass
    program.mover.next = moved_next
    program.eager(1)
    finish(program, 2 * LAYERS)


def test_a_replay_that_fails_is_an_aborted_step(program: Program) -> None:
    """Its remaining broadcasts are issued, and the next steps are right, eager and replayed."""
    program.capture()
    program.replay(1)
    program.rig.pause(STEP)
    program.mover.next = program.prefetch_step
    with pytest.raises(ForwardDiedError), program.series.step(), program.series.replay():
        raise ForwardDiedError
    program.eager(1)
    program.replay(1)
    finish(program, 3 * LAYERS)
    assert steps(program)["flags"].tolist() == [0, StepFlag.ABORTED, 0, 0]


def test_graphs_within_a_step_are_refused(program: Program) -> None:
    """Neither a capture nor a replay begins within a forward that has begun: the error says so."""
    program.capture()
    program.series.reach(0)
    with pytest.raises(OrderError, match="replayed in the middle of step 0"), program.series.replay():
        pass
    with pytest.raises(OrderError, match="captured in the middle of step 0"), program.rig.capture(program.rig.graph()):
        program.series.reach(0)


def test_rolling_windows_refuse_a_capture(tmp_path: Path) -> None:
    """Their pointers change from step to step: a graph would read stale weights. The error names the setting."""
    durations = Durations.even(LAYERS, before=1, linear=1, transfer=1)
    program = Program(SimulatedRig(SimulatedDevice()), tmp_path, durations, windows="rolling")
    with pytest.raises(OrderError, match="set SWTRACE_WINDOWS=static"):
        program.capture()


def forward_through(both: list[Program]) -> None:
    """Launch one forward with a linear of each series per layer."""
    for position in range(LAYERS):
        for program in both:
            program.series.reach(position)
        for program in both:
            program.series.wait(position)
            weight = program.layers[position].weight.data
            program.rig.read(weight, program.contents[position], program.durations.linear[position])


def captured_through(both: list[Program]) -> Any:
    """Capture such a forward."""
    moved_next = [program.mover.next for program in both]
    graph = both[0].rig.graph()
    with both[0].rig.capture(graph):
        forward_through(both)
        for program in both:
            program.series.join()
    for program, position in zip(both, moved_next, strict=True):
        program.mover.next = position
    return graph


@pytest.mark.parametrize("transfer_ns", [500, 200_000])
def test_two_series_share_a_device_and_its_graphs(tmp_path: Path, transfer_ns: int) -> None:
    """Each with a prefetch stream of its own, in one forward and one graph: every read right, every step timed."""
    rig = SimulatedRig(SimulatedDevice())
    durations = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=transfer_ns)
    both = [
        Program(rig, tmp_path / name, durations, prefetch_step=k, rank=rank)
        for name, k, rank in (("narrow", 1, 0), ("wide", 3, 1))
    ]
    graph = captured_through(both)
    narrow, wide = (program.series for program in both)
    for step in range(10):
        with narrow.step(), wide.step():
            if step % 3:
                with narrow.replay(), wide.replay():
                    rig.replay(graph)
                    narrow_mover, wide_mover = (program.mover for program in both)
                    narrow_mover.next = wide_mover.next = 0
            else:
                forward_through(both)
        rig.pause(STEP)
    assert rig.readings() == (2 * 2 * LAYERS * 10, 0)
    for program in both:
        program.close()
        assert steps(program)["untimed"].tolist() == [Untimed.TIMED] * 10
