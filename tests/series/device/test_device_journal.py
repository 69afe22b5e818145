"""The journal of a device's series against hostile devices: it counts everything, and waits for nothing."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swtrace.series.device.device_journal import CLOSE_PATIENCE_S, SHEETS, DeviceJournal
from swtrace.series.journal import DEFAULT_EVERY
from swtrace.trace import records as columns
from swtrace.trace.marks import Progress
from swtrace.trace.request_link import RequestLink
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import RUN_STEPS, Clock, Kind, Observed, StepFlag, TransferFlag, Untimed
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import ForwardDiedError, Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock

LAYERS = 7
CALL = 1_000
DURATIONS = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=70_000)
STEP = LAYERS * 120_000
"""In ns: longer than a step takes the device."""


class SimulatedTime:
    """What stands in for the ``time`` module where a close waits for the device: sleeping moves virtual time."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device

    def monotonic(self) -> float:
        """Return the host's time in s."""
        return self._device.host.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self._device.host.advance(round(seconds * 1e9))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> SimulatedRig:
    """Return a simulated device, by whose host's clock the series waits when it closes."""
    rig = SimulatedRig(SimulatedDevice(call_ns=CALL))
    for module in ("swtrace.series.circle", "swtrace.series.device.device_journal"):
        monkeypatch.setattr(f"{module}.time", SimulatedTime(rig.device))
    return rig


def journal(program: Program) -> DeviceJournal:
    """Return the journal of a program's series."""
    found = program.series._circle._journal  # type: ignore[union-attr]
    assert isinstance(found, DeviceJournal)
    return found


def stepped(program: Program) -> Any:
    records = program.records()
    return records[records["kind"] == Kind.STEP].view(columns.STEP)


def transfers(program: Program, step: int | None = None) -> Any:
    records = program.records()
    found = records[records["kind"] == Kind.TRANSFER]
    return found if step is None else found[found["step"] == step]


def reasons(program: Program) -> list[Untimed]:
    """Return why each step is untimed, in the order of the records, which must be the steps' order."""
    steps = stepped(program)
    assert steps["step"].tolist() == list(range(len(steps)))
    for step in steps:
        moved = transfers(program, int(step["step"]))
        if step["untimed"] == Untimed.TIMED:
            assert sorted(moved["position"]) == list(range(LAYERS))
            assert step["begin_ns"] <= step["arrival_ns"] < step["end_ns"]
        else:
            assert len(moved) == 0, "no instant is made up"
            # A step that was only left out by sampling still has the time when it ran.
            dated = step["untimed"] in {Untimed.SAMPLED, Untimed.BUSY} and step["begin_ns"]
            assert bool(dated) == any(step[instant] for instant in ("begin_ns", "arrival_ns", "end_ns"))
            assert step["begin_ns"] <= step["arrival_ns"] <= step["end_ns"]
    return [Untimed(int(untimed)) for untimed in steps["untimed"]]


def step_costs(program: Program, steps: int, *, replayed: bool = False, pause_ns: int = 0) -> list[int]:
    """Run steps; return what each cost the launching thread, in ns."""
    costs = []
    for _ in range(steps):
        begun_ns = program.rig.device.host_ns()
        if replayed:
            program.replay(1)
        else:
            program.eager(1)
        costs.append(program.rig.device.host_ns() - begun_ns)
        program.rig.pause(pause_ns)
    return costs


# ---- a device that is behind, or hangs ------------------------------------------------------------


@pytest.mark.parametrize("replayed", [False, True])
def test_a_device_that_hangs_never_blocks_the_host_and_every_step_is_counted(
    tmp_path: Path, at: SimulatedRig, *, replayed: bool
) -> None:
    """Steps beyond the pool are untimed, at no greater cost; once it goes on, steps are in order and timed again."""
    program = Program(at, tmp_path, DURATIONS)
    if replayed:
        program.capture()
    usual = step_costs(program, 10, replayed=replayed, pause_ns=STEP)
    at.catch_up()
    hung = program.transport.stream.hang()  # type: ignore[attr-defined]
    queries = at.device.calls["query"]
    stuck = step_costs(program, 50, replayed=replayed)
    assert max(stuck) <= max(usual), "a step costs its calls, and nothing more"
    assert at.device.calls["query"] - queries <= 50 + sum(usual) // CALL, "it asks, and does not ask again and again"
    told = len(stepped(program))
    assert told <= 10
    at.device.release(hung)
    at.catch_up()
    step_costs(program, 10, replayed=replayed, pause_ns=STEP)
    at.catch_up()
    program.close()
    why = reasons(program)
    assert len(why) == 70
    assert why[:10] == [Untimed.TIMED] * 10
    busy = why.count(Untimed.BUSY)
    assert 50 - SHEETS <= busy <= 50 - SHEETS + 3
    assert set(why) == {Untimed.TIMED, Untimed.BUSY}
    assert why[-5:] == [Untimed.TIMED] * 5
    assert at.device.lost_instants == 0, "no event was recorded again before it was passed"
    assert at.readings()[1] == 0


def test_closing_gives_up_on_a_device_that_never_comes_back(tmp_path: Path, at: SimulatedRig) -> None:
    """Closing waits as long as it says, then every step is there, those without instants saying why."""
    program = Program(at, tmp_path, DURATIONS)
    step_costs(program, 3, pause_ns=STEP)
    at.catch_up()
    program.transport.stream.hang()  # type: ignore[attr-defined]
    step_costs(program, SHEETS + 4)
    begun_ns = at.device.host_ns()
    program.series.close()
    assert at.device.host_ns() - begun_ns <= 2.1 * CLOSE_PATIENCE_S * 1e9, "the journal's patience, and the sends'"
    assert program.recorder is not None
    with RingReader.open(program.recorder.path) as reader:
        reader.series()
        assert reader.closed_series() == {0}, "the ring says that the series is closed"
    program.close()
    why = reasons_but_open(program)
    assert len(why) == 3 + SHEETS + 4
    assert why[:3] == [Untimed.TIMED] * 3
    assert set(why[3:]) <= {Untimed.UNFINISHED, Untimed.BUSY, Untimed.TIMED}
    assert Untimed.UNFINISHED in why


def reasons_but_open(program: Program) -> list[Untimed]:
    return [Untimed(int(untimed)) for untimed in stepped(program)["untimed"]]


def test_what_completes_out_of_order_is_recorded_in_order(tmp_path: Path, at: SimulatedRig) -> None:
    """A send that hangs while the forward goes on holds its step back, and those after it, until it ends."""
    durations = Durations.even(2, before=20_000, linear=30_000, transfer=10_000)
    program = Program(at, tmp_path, durations, prefetch_step=0, ranks=3, rank=0)  # owns layer 0 of 2
    step_costs(program, 2, pause_ns=STEP)
    told = len(stepped(program))
    sink = at.device.stream("another")
    hung = sink.hang()
    late = at.device.event(timed=False)
    late.record(sink)
    program.transport.stream.wait_event(late)
    program.eager(1)
    at.pause(10 * STEP)
    program.eager(1)
    assert len(stepped(program)) <= told + 1, "the step under way is not told, nor any later one"
    at.device.release(hung)
    at.catch_up()
    program.close()
    assert stepped(program)["step"].tolist() == [0, 1, 2, 3]
    assert at.readings()[1] == 0


def test_chance_never_loses_or_repeats_a_record(tmp_path: Path, at: SimulatedRig) -> None:
    """Hangs, lateness, deaths and replays by chance: each step is recorded once, in order, whole or untimed."""
    chance = random.Random(0)  # noqa: S311 - reproducible
    program = Program(at, tmp_path, DURATIONS, prefetch_step=2)
    program.capture()
    hung = None
    died = set()
    for step in range(300):
        if hung is None and chance.random() < 0.05:
            hung = program.transport.stream.hang()  # type: ignore[attr-defined]
        elif hung is not None and chance.random() < 0.1:
            at.device.release(hung)
            hung = None
        what = chance.choice(["eager", "replay", "die"])
        if what == "die":
            died.add(step)
            with pytest.raises(ForwardDiedError), program.series.step():
                program.forward(stop_at=chance.randrange(1, LAYERS))
        elif what == "eager":
            program.eager(1)
        else:
            program.replay(1)
        at.pause(chance.choice([0, STEP // 2, 2 * STEP]))
    if hung is not None:
        at.device.release(hung)
    at.catch_up()
    program.close()
    why = reasons(program)
    assert len(why) == 300
    assert set(why) == {Untimed.TIMED, Untimed.BUSY}
    aborted = stepped(program)["flags"] & StepFlag.ABORTED
    assert set(np.flatnonzero(aborted).tolist()) == died
    operations = transfers(program)["operation"][(transfers(program)["flags"] & TransferFlag.PREFILLED) == 0]
    assert len(set(operations.tolist())) == len(operations)
    assert at.device.lost_instants == 0
    assert at.readings()[1] == 0


# ---- captures -------------------------------------------------------------------------------------


def test_a_capture_with_steps_under_way_asks_nothing(tmp_path: Path, at: SimulatedRig) -> None:
    """Sheets that are not harvested yet stay as they are during a capture, and are recorded after it."""
    program = Program(at, tmp_path, DURATIONS)
    program.eager(3)
    queries = at.device.calls["query"]
    program.capture()  # a query would spoil it
    assert at.device.calls["query"] == queries
    program.replay(2)
    at.catch_up()
    program.close()
    assert reasons(program) == [Untimed.TIMED] * 5


def test_replays_whose_stamps_cannot_be_had_are_counted(tmp_path: Path, at: SimulatedRig) -> None:
    """Without a clock for the stamps, or without stamps, a replay is untimed and says why; eager steps are timed."""
    program = Program(at, tmp_path, DURATIONS)
    stamps: Any = journal(program).stamps
    stamps.correspondent.mute = True
    program.capture()
    for _ in range(3):
        step_costs(program, 1, replayed=True, pause_ns=STEP)
        step_costs(program, 1, pause_ns=STEP)
    at.catch_up()
    program.close()
    assert reasons(program) == [Untimed.NO_ANCHOR, Untimed.TIMED] * 3


def test_a_replay_that_never_was_has_no_instants(tmp_path: Path, at: SimulatedRig) -> None:
    """Where the framework announced a graph and launched none, the stamps say so, and the step is untimed."""
    program = Program(at, tmp_path, DURATIONS, prefetch_step=0)
    program.capture()
    step_costs(program, 2, replayed=True, pause_ns=STEP)
    with program.series.step(), program.series.replay():
        pass
    at.pause(STEP)
    step_costs(program, 2, replayed=True, pause_ns=STEP)
    at.catch_up()
    program.close()
    why = reasons(program)
    assert why[2] is not Untimed.TIMED
    assert why[:2] + why[3:] == [Untimed.TIMED] * 4


def test_a_layer_that_the_captured_forward_passes_by_is_unwaited(
    tmp_path: Path, at: SimulatedRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its linear never read it, in any replay: its transfers are timed and flagged as without a wait."""
    program = Program(at, tmp_path, DURATIONS, prefetch_step=0)
    passed_by = 3
    wait = program.series.wait
    monkeypatch.setattr(program.series, "wait", lambda layer_idx: layer_idx == passed_by or wait(layer_idx))
    program.capture()
    step_costs(program, 2, replayed=True, pause_ns=STEP)
    at.catch_up()
    program.close()
    assert reasons(program) == [Untimed.TIMED] * 2
    for record in transfers(program):
        unwaited = bool(record["flags"] & TransferFlag.UNWAITED)
        assert unwaited == (record["position"] == passed_by)
        assert (record["wait_begin_ns"] == 0) == unwaited
        assert record["ready_ns"] > record["issued_ns"]


def test_a_series_whose_device_has_no_stamps_counts_its_replays(
    tmp_path: Path, at: SimulatedRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device whose kernels cannot read a clock, replays are untimed; nothing else changes."""
    monkeypatch.setattr(SimulatedDevice, "stamps", lambda _self, _slots: None)
    program = Program(at, tmp_path, DURATIONS)
    program.capture()
    step_costs(program, 2, replayed=True, pause_ns=STEP)
    step_costs(program, 1, pause_ns=STEP)
    at.catch_up()
    program.close()
    assert reasons(program) == [Untimed.REPLAY, Untimed.REPLAY, Untimed.TIMED]
    assert at.readings()[1] == 0


# ---- by choice, at the end, and after deaths -------------------------------------------------------


def test_every_nth_step_is_timed_and_all_are_counted(
    tmp_path: Path, at: SimulatedRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SWTRACE_TIME_EVERY=3: 4 of 12 steps are timed, the others counted; a step costs less on average."""
    always = Program(at, tmp_path / "always", DURATIONS)
    dear = step_costs(always, 24, pause_ns=STEP)
    monkeypatch.setenv("SWTRACE_TIME_EVERY", "3")
    program = Program(at, tmp_path / "sampled", DURATIONS, time_every=None)
    costs = step_costs(program, 24, pause_ns=STEP)
    at.catch_up()
    program.close()
    assert reasons(program) == [*[Untimed.TIMED] * RUN_STEPS, *[Untimed.SAMPLED] * 2 * RUN_STEPS] * 2
    assert set(stepped(program)["waits"].tolist()) == {LAYERS}
    assert sum(costs) < 0.8 * sum(dear)
    always.close()


def test_a_device_is_sampled_as_gloo_is(tmp_path: Path, at: SimulatedRig) -> None:
    """Unless the settings say otherwise: the first 64 steps, then four of every 128, to the end of the run."""
    program = Program(at, tmp_path, DURATIONS, time_every=None)
    step_costs(program, 2 * RUN_STEPS * DEFAULT_EVERY + RUN_STEPS + 1, pause_ns=STEP)
    at.catch_up()
    program.close()
    timed = [step for step, why in enumerate(reasons(program)) if why is Untimed.TIMED]
    assert timed == [*range(64), 128, 129, 130, 131, 256, 257, 258, 259]


def test_traced_requests_come_with_their_step(
    tmp_path: Path, at: SimulatedRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that the device finishes later still has the requests of its own batch, if it is timed."""
    monkeypatch.setenv("SWTRACE_TIME_EVERY", "3")
    program = Program(at, tmp_path, DURATIONS, time_every=None)
    step = program.series.step
    for number in range(6):
        monkeypatch.setattr(program.series, "step", partial(step, links=(RequestLink(7, number + 1),)))
        program.eager(1)
    at.catch_up()
    program.close()
    records = program.records()
    requests = records[records["kind"] == Kind.REQUEST].view(columns.REQUEST)
    begun = {int(each["step"]): int(each["begin_ns"]) for each in stepped(program)}
    assert [(int(each["step"]), int(each["span_id"]), int(each["at_ns"])) for each in requests] == [
        (number, number + 1, begun[number]) for number in range(RUN_STEPS)
    ]


def test_a_close_with_steps_under_way_records_them_all(tmp_path: Path, at: SimulatedRig) -> None:
    """The host is far ahead when the series closes: it waits for the device, and records every step's instants."""
    program = Program(at, tmp_path, DURATIONS, prefetch_step=2)
    program.eager(SHEETS - 2)
    assert len(stepped(program)) < SHEETS - 2
    program.close()
    assert reasons(program) == [Untimed.TIMED] * (SHEETS - 2)
    left = transfers(program, SHEETS - 2)
    assert sorted(left["position"]) == [0, 1]
    assert ((left["flags"] & TransferFlag.OPEN) > 0).all()


def test_an_aborted_step_accounts_for_every_layer(tmp_path: Path, at: SimulatedRig) -> None:
    """After a failed forward, its step has L records, with missing waits flagged; the next step is whole."""
    program = Program(at, tmp_path, DURATIONS)
    program.eager(1)
    with pytest.raises(ForwardDiedError), program.series.step():
        program.forward(stop_at=3)
    program.eager(2)
    at.catch_up()
    program.close()
    assert reasons(program) == [Untimed.TIMED] * 4
    dead = transfers(program, 1)
    unwaited = dead[(dead["flags"] & TransferFlag.UNWAITED) > 0]
    assert sorted(unwaited["position"]) == [3, 4, 5, 6]
    assert not unwaited["wait_end_ns"].any()
    assert (unwaited["ready_ns"] > unwaited["issued_ns"]).all()
    assert stepped(program)["flags"].tolist() == [0, StepFlag.ABORTED, 0, 0]
    assert at.readings()[1] == 0


def test_every_record_says_that_the_device_is_its_clock(tmp_path: Path, at: SimulatedRig) -> None:
    """Transfers and steps alike; and ready is known by events in eager steps, by stamps in replays."""
    program = Program(at, tmp_path, DURATIONS)
    program.eager(1)
    program.capture()
    program.replay(1)
    at.catch_up()
    program.close()
    assert (columns.clock(transfers(program)) == Clock.DEVICE).all()
    assert (columns.clock(stepped(program)) == Clock.DEVICE).all()
    assert program.series.info.clock == "device"
    replayed = transfers(program, 1)
    by_graph = replayed[replayed["position"] >= program.prefetch_step]
    assert set(columns.observed(by_graph)) == {Observed.STAMP}
    assert Observed.STAMP not in columns.observed(transfers(program, 0))


def test_a_stall_comes_with_what_the_host_had_launched_by_then(tmp_path: Path, at: SimulatedRig) -> None:
    """For each eager wait that stalled: when the host launched its issue and itself, not after the device did them."""
    program = Program(at, tmp_path, DURATIONS)
    program.eager(4)
    at.catch_up()
    program.close()
    records = program.records()
    launches = {(int(r["step"]), int(r["position"])): r for r in records[records["kind"] == Kind.LAUNCH]}
    moved = transfers(program)
    held = moved[moved["wait_end_ns"] > moved["wait_begin_ns"]]
    assert set(launches) == {(int(r["step"]), int(r["position"])) for r in held}
    assert len(held) > 0
    for record in held:
        launch = launches[int(record["step"]), int(record["position"])]
        assert 0 < launch["issued_ns"] <= record["issued_ns"] + 2 * CALL
        assert 0 < launch["wait_begin_ns"] <= record["wait_begin_ns"] + 2 * CALL
        assert columns.clock(np.array([launch]))[0] == Clock.HOST


# ---- what a host timer would have said ---------------------------------------------------------------


def test_a_host_timer_sees_no_stall_where_the_device_has_much(tmp_path: Path) -> None:
    """Around the same waits, the host's clock counts its own calls and nothing else; the device's the whole truth."""
    rig = SimulatedRig(SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=10))
    program = Program(rig, tmp_path, Durations.even(LAYERS, before=20_000, linear=30_000, transfer=1_000_000))
    program.eager(6)
    rig.catch_up()
    program.close()
    stall_ns = sum(int(facts.stall_ns.sum()) for facts in program.facts())
    assert stall_ns == pytest.approx(sum(wait.stall_ns for wait in program.truth.waits), rel=0.001)
    assert program.naive_ns < stall_ns / 1_000


def progress(program: Program) -> Progress:
    """Return what the ring says about the device, after the journal has looked at it."""
    journal(program).look()
    assert program.recorder is not None
    with RingReader.open(program.recorder.path) as reader:
        reader.series()
        return reader.marks().progress[0]


@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "replayed"])
def test_a_device_that_hangs_is_told_from_one_that_is_idle(tmp_path: Path, at: SimulatedRig, *, replayed: bool) -> None:
    """The number of completed steps stays below that of launched ones while the device hangs, and only then."""
    program = Program(at, tmp_path, DURATIONS)
    if replayed:
        program.capture()
    step_costs(program, 3, replayed=replayed, pause_ns=STEP)
    at.catch_up()
    idle = progress(program)
    assert idle.completed == idle.issued // LAYERS
    assert idle.completed_ns > 0

    broadcast = program.transport.stream.hang()  # type: ignore[attr-defined]
    step_costs(program, 1, replayed=replayed)
    at.pause(1000 * STEP)
    hung = progress(program)
    assert (hung.completed, hung.issued // LAYERS) == (idle.completed, idle.completed + 1)
    assert hung.completed_ns <= hung.since_ns

    at.device.release(broadcast)
    at.catch_up()
    assert progress(program).completed == idle.completed + 1
    program.close()
