"""The records of a traced series: every operation once, with true instants."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import distributed as dist

from swtrace.observing import watch_rings
from swtrace.series import RankGroup, Series, recording
from swtrace.series.ideal import IdealChannel, IdealTransport, ScheduledOperation
from swtrace.series.journal import RecordingJournal
from swtrace.trace import records as columns
from swtrace.trace.clocks import now_ns
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.marks import Marks, Occupancy
from swtrace.trace.recorder import Recorder
from swtrace.trace.request_link import RequestLink
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import (
    MOST_REQUESTS,
    NO_WINDOW,
    Clock,
    Collective,
    Kind,
    Observed,
    Phase,
    Stage,
    StepFlag,
    TransferFlag,
    Untimed,
)
from tests.support.patience import eventually
from tests.support.ranks import run_ranks
from tests.support.stacks import ForwardDiedError, Stack, true_weights
from tests.support.traced_series import COMPUTE, LAYERS, START, STEPS, Traced, read, stepped, traced_on_gloo, transfers
from tests.support.writer_process import identity, series_info


@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize("prefetch_step", [0, 1, 3])
def test_records_equal_the_channels_own_schedule(tmp_path: Path, prefetch_step: int, windows: str) -> None:
    """On the ideal channel, issued, ready, source and operation number of every record are exact."""
    channel = IdealChannel(2, latency_ns=3, occupancy_ns=180)

    def program(transport: IdealTransport) -> SeriesInfo:
        traced = Traced(transport, tmp_path, prefetch_step=prefetch_step, windows=windows)
        traced.steps(STEPS)
        traced.finish()
        return traced.series.info

    infos = channel.run(program)
    schedule = channel.schedule()
    for rank, info in enumerate(infos):
        known_info, records = read(tmp_path, rank)
        assert known_info == info
        assert info.clock == "virtual"
        assert not (columns.clock(records) != Clock.VIRTUAL).any()
        moved = [record for record in transfers(records) if not record["flags"] & TransferFlag.PREFILLED]
        assert len(moved) == STEPS * LAYERS
        for record in moved:
            check_against_truth(record, schedule[record["operation"]], info, rank)


def check_against_truth(record: Any, truth: ScheduledOperation, info: SeriesInfo, rank: int) -> None:
    assert record["source"] == truth.source == info.source(int(record["position"]))
    assert record["issued_ns"] == truth.issued_ns[rank]
    assert record["reach_position"] == (int(record["position"]) - info.prefetch_step) % LAYERS
    own = truth.source == rank
    assert bool(record["flags"] & TransferFlag.OWN) == own
    assert (record["window"] == NO_WINDOW) == own
    crosses = record["position"] < info.prefetch_step
    assert bool(record["flags"] & TransferFlag.CROSSES_STEPS) == crosses
    assert record["step"] == truth.number // LAYERS + crosses
    if record["flags"] & TransferFlag.OPEN:
        assert record["step"] == STEPS
        return
    assert record["ready_ns"] == truth.ready_ns[rank]
    assert record["observed_clock"] & 0x0F == Observed.EXACT
    if own:
        assert record["wait_end_ns"] == record["wait_begin_ns"] > 0
    else:
        assert record["wait_end_ns"] == max(record["wait_begin_ns"], truth.ready_ns[rank])


def test_a_step_is_one_record_per_layer_and_then_its_own(tmp_path: Path) -> None:
    """Each step writes L transfers, receivers' in the order of their waits, and last its step record."""

    def program(transport: IdealTransport) -> None:
        traced = Traced(transport, tmp_path)
        traced.steps(STEPS)
        traced.finish()

    IdealChannel(2, occupancy_ns=10).run(program)
    for rank in range(2):
        _, records = read(tmp_path, rank)
        ends = np.flatnonzero(records["kind"] == Kind.STEP)
        assert ends.tolist() == [LAYERS + step * (LAYERS + 1) for step in range(STEPS)]
        for step, end in enumerate(ends):
            mine = records[end - LAYERS : end]
            assert sorted(mine["position"]) == list(range(LAYERS))
            assert set(mine["step"]) == {step}
            received = mine[(mine["flags"] & TransferFlag.OWN) == 0]["position"]
            assert received.tolist() == sorted(received)
        for step, record in enumerate(stepped(records)):
            assert (record["step"], record["tokens"], record["requests"]) == (step, 5, 2)
            assert (record["phase"], record["waits"], record["flags"]) == (Phase.DECODE, LAYERS, 0)
            assert record["begin_ns"] <= record["arrival_ns"] <= record["end_ns"]


def test_the_first_layers_are_prefilled_and_the_last_broadcasts_open(tmp_path: Path) -> None:
    """The first k waits had no broadcast, and the k broadcasts under way at the end are open, not lost."""

    def program(transport: IdealTransport) -> None:
        traced = Traced(transport, tmp_path, prefetch_step=2)
        traced.steps(1)
        traced.finish()

    IdealChannel(2).run(program)
    for rank in range(2):
        moves = transfers(read(tmp_path, rank)[1])
        prefilled = moves[(moves["flags"] & TransferFlag.PREFILLED) > 0]
        assert sorted(prefilled["position"]) == [0, 1]
        assert set(prefilled["step"]) == {0}
        assert (prefilled["wait_begin_ns"] == prefilled["ready_ns"]).all()
        left = moves[(moves["flags"] & TransferFlag.OPEN) > 0]
        assert sorted(left["position"]) == [0, 1]
        assert set(left["step"]) == {1}
        assert ((left["flags"] & TransferFlag.CROSSES_STEPS) > 0).all()


@pytest.mark.parametrize("windows", ["static", "rolling"])
def test_an_aborted_step_accounts_for_every_layer(tmp_path: Path, windows: str) -> None:
    """After a failed forward, the step still has L records, and those without a wait are flagged."""

    def program(transport: IdealTransport) -> None:
        traced = Traced(transport, tmp_path, windows=windows)
        with suppress(ForwardDiedError), traced.series.step():
            traced.stack.forward(0, stop_at=3)
        traced.steps(1)
        traced.finish()

    IdealChannel(2).run(program)
    for rank in range(2):
        _, records = read(tmp_path, rank)
        first = transfers(records)[:LAYERS]
        assert sorted(first["position"]) == list(range(LAYERS))
        assert set(first["step"]) == {0}
        unwaited = first[(first["flags"] & TransferFlag.UNWAITED) > 0]
        assert sorted(unwaited["position"]) == [3, 4, 5, 6]
        assert not unwaited["wait_end_ns"].any()
        aborted, good = stepped(records)
        assert (aborted["flags"], aborted["waits"]) == (StepFlag.ABORTED, 3)
        assert (good["flags"], good["waits"]) == (0, LAYERS)


def test_a_step_without_marks_ends_with_its_last_wait(tmp_path: Path) -> None:
    """Without a marked end, the step record says so and ends when the last wait ended."""

    def program(transport: IdealTransport) -> None:
        traced = Traced(transport, tmp_path)
        for step in range(2):
            traced.stack.forward(step, before=lambda: transport.compute(COMPUTE))
            transport.compute(10_000)
        traced.finish()

    IdealChannel(2).run(program)
    _, records = read(tmp_path, 0)
    steps = stepped(records)
    assert steps["flags"].tolist() == [StepFlag.IMPLICIT_END] * 2
    for step in steps:
        waits = transfers(records)
        assert step["end_ns"] == waits[waits["step"] == step["step"]]["wait_end_ns"].max()


def test_the_window_table_shows_what_is_under_way(tmp_path: Path) -> None:
    """While a forward runs, each window is free, in flight or in use, and occupancy sums to the windows."""

    def program(transport: IdealTransport) -> list[list[tuple[Occupancy, int]]]:
        traced = Traced(transport, tmp_path, prefetch_step=1)
        seen = []
        with RingReader.open(traced.recorder.path) as reader:
            for layer_idx in range(START, START + LAYERS):
                traced.series.reach(layer_idx)
                traced.series.wait(layer_idx)
                seen.append([(window.state, window.position) for window in reader.windows(0)])
        traced.finish()
        return seen

    rank0, _ = IdealChannel(2, occupancy_ns=10).run(program)
    assert {len(windows) for windows in rank0} == {2}
    assert any(state is Occupancy.FREE for state, _ in rank0[0])
    for position in range(1, LAYERS):
        owned = (START + position) % 2 == 0
        states = {held: state for state, held in rank0[position] if state is not Occupancy.FREE}
        if owned:
            assert states[(position + 1) % LAYERS] is Occupancy.INFLIGHT
        else:
            assert states[position] is Occupancy.IN_USE


@pytest.mark.parametrize("prefetch_step", [0, 1])
def test_a_closed_series_is_marked_while_its_rank_lives_on(tmp_path: Path, prefetch_step: int) -> None:
    """The ring says which series the rank has closed."""

    def program(transport: IdealTransport) -> list[frozenset[int]]:
        traced = Traced(transport, tmp_path, prefetch_step=prefetch_step)
        seen = []
        with RingReader.open(traced.recorder.path) as reader:
            reader.series()
            traced.steps(1)
            seen.append(reader.closed_series())
            traced.series.close()
            seen.append(reader.closed_series())
        traced.finish()
        return seen

    assert IdealChannel(2, occupancy_ns=10).run(program) == [[frozenset(), frozenset({0})]] * 2


@pytest.mark.parametrize(
    ("every", "timed"),
    [
        ("auto", [*range(64), 128, 129]),
        ("1", list(range(130))),
        ("2", [step for step in range(130) if step % 8 < 4]),
    ],
)
def test_on_gloo_only_timed_steps_have_records_of_their_waits(tmp_path: Path, every: str, timed: list[int]) -> None:
    """Timed are the first steps and then some in a row, or as SWTRACE_TIME_EVERY says; every step is counted."""
    environment = {"SWTRACE_DIR": str(tmp_path), "SWTRACE_TIME_EVERY": every}
    run_ranks(2, traced_on_gloo, 130, environment=environment)
    for rank in range(2):
        _, records = read(tmp_path, rank)
        steps = stepped(records)
        assert steps["step"].tolist() == list(range(130))
        assert steps["step"][steps["untimed"] == Untimed.TIMED].tolist() == timed
        assert set(steps["untimed"]) <= {Untimed.TIMED, Untimed.SAMPLED}
        assert set(steps["waits"]) == {LAYERS}
        assert (steps["end_ns"] > steps["begin_ns"]).all()
        moves = transfers(records)
        moves = moves[(moves["flags"] & TransferFlag.UNWAITED) == 0]
        assert moves["step"].tolist() == [step for step in timed for _ in range(LAYERS)]
    with watch_rings(tmp_path) as watch:
        watch.drain()
        watch.ledger.flush()
        facts = watch.ledger.facts()
    assert [rank.oddities.missing for rank in facts.ranks] == [0, 0]
    for rank_facts in facts.series[0].ranks:
        totals = rank_facts.totals
        assert totals.steps == 130
        assert totals.untimed_steps["sampled"] == sum(totals.untimed_steps.values()) == 130 - len(timed)
        assert totals.sent + totals.received == 130 * LAYERS


def test_what_the_program_keeps_counts_as_held(tmp_path: Path) -> None:
    """Layers that are held after their turn cost memory, and count as held by the rank for as long."""

    def program(transport: IdealTransport) -> int:
        traced = Traced(transport, tmp_path)
        held: list[Any] = []
        for layer in traced.stack.layers:
            layer.register_forward_hook(lambda module, *_: held.append(module.weight))
        traced.steps(1)
        kept = traced.series.statistics().kept_layers
        traced.finish()
        return kept

    kept = IdealChannel(2).run(program)
    assert all(kept)
    with watch_rings(tmp_path) as watch:
        watch.drain()
        watch.ledger.flush()
        (series,) = watch.ledger.facts().series
    for rank, layers in zip(series.ranks, kept, strict=True):
        assert rank.kept_bytes == layers * rank.info.layer_bytes
        assert rank.held_bytes == rank.info.owned_bytes + rank.info.window_bytes + rank.kept_bytes


@pytest.mark.parametrize("every", [1, 2])
def test_traced_requests_are_recorded_with_timed_steps(tmp_path: Path, every: int) -> None:
    """A timed step has its requests, up to a bound. An untimed step has none."""
    links = tuple(RequestLink(7, span) for span in range(1, 40))
    host_clock: Any = SimpleNamespace(clock=Clock.HOST, now=now_ns)
    recorder = Recorder.create(tmp_path, identity(0))
    journal = RecordingJournal(recorder.add_series(series_info("s")), host_clock, every=every)
    for step in range(8):
        journal.begins()
        journal.stepped(step, links if step % 2 else (), tokens=1)
    recorder.close()
    _, records = read(tmp_path, 0)
    requests = records[records["kind"] == Kind.REQUEST].view(columns.REQUEST)
    timed = [int(step["step"]) for step in stepped(records) if step["untimed"] == Untimed.TIMED and step["step"] % 2]
    assert timed == ([1, 3, 5, 7] if every == 1 else [1, 3])
    assert [(int(each["step"]), int(each["span_id"])) for each in requests] == [
        (step, link.span_id) for step in timed for link in links[:MOST_REQUESTS]
    ]


def marks_of(folder: str, rank: int) -> Marks:
    """Return what a rank's ring says that the rank is doing."""
    (path,) = Path(folder).glob(f"*-{rank}-*")
    with RingReader.open(path) as reader:
        reader.series()
        return reader.marks()


def watch_a_blocked_peer(rank: int, folder: str) -> None:
    """Let rank 1 reach a layer only once rank 0's ring says that rank 0 waits for it, and check the marks around it."""
    series = Series("s", RankGroup.world(), 0, 4, recorder=recording.process_recorder)
    Stack(series, 0, true_weights(4))
    series.post_process()
    with series.step():
        for layer in range(4):
            if (rank, layer) == (1, 2):
                # Before the other rank has entered the series in its ring, there is no progress.
                eventually(
                    lambda: [each.waiting for each in marks_of(folder, 0).progress] == [3], "rank 0 to wait for layer 3"
                )
                blocked = marks_of(folder, 0).progress[0]
                assert (blocked.issued, blocked.stage) == (4, Stage.MARKED)
                assert blocked.since_ns <= blocked.waiting_since_ns <= now_ns()
            series.reach(layer)
            series.wait(layer)
    own = marks_of(folder, rank).progress[0]
    assert (own.issued, own.stage, own.waiting) == (4, Stage.BETWEEN, -1)
    assert own.since_ns >= blocked.waiting_since_ns if rank else own.since_ns
    series.close()


def test_a_wait_that_blocks_is_marked_while_it_blocks(tmp_path: Path) -> None:
    """A peer reads which layer a rank is blocked on and since when; afterwards the mark is gone."""
    run_ranks(2, watch_a_blocked_peer, str(tmp_path), environment={"SWTRACE_DIR": str(tmp_path)})


def watch_a_collective(rank: int, folder: str) -> None:
    """Let rank 1 come to a barrier only once rank 0's ring says that rank 0 is in a collective."""
    series = Series("s", RankGroup.world(), 0, 4, recorder=recording.process_recorder)
    Stack(series, 0, true_weights(4))
    series.post_process()
    if rank == 1:
        eventually(lambda: marks_of(folder, 0).collective, "rank 0 to be in a collective")
    assert marks_of(folder, rank).collective is None
    with series.naming_dead_peers():
        assert marks_of(folder, rank).collective is Collective.OTHER
        dist.barrier()
    assert marks_of(folder, rank).collective is None
    series.close()


def test_a_collective_outside_the_series_is_marked(tmp_path: Path) -> None:
    """A peer reads that a rank is in a collective wrapped in naming_dead_peers, and no longer once it is over."""
    run_ranks(2, watch_a_collective, str(tmp_path), environment={"SWTRACE_DIR": str(tmp_path)})
