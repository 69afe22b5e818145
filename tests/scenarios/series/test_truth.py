"""Reported facts against known truth, all the way from the runtime through a ring to the ledger."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.observing import watch_rings
from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealTransport, ScheduledOperation
from swtrace.series.recording import process_recorder
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import TransferFlag
from tests.support.ranks import run_ranks

MS = 1_000_000
STEPS = 24
LAYERS = 6


def read(directory: Path) -> tuple[SeriesFacts, tuple[StepFacts, ...]]:
    """Return the facts of the rings of a finished run."""
    with watch_rings(directory, keep_steps=True) as watch:
        watch.drain()
        watch.ledger.flush()
        for status in watch.observe().ranks:
            statistics_ = status.ring.statistics
            assert statistics_.written == statistics_.delivered
        (series,) = watch.ledger.facts().series
        return series, watch.ledger.take_steps()


@dataclass(frozen=True)
class Waited:
    """One wait as the rank's program saw it, in virtual time."""

    step: int
    position: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True)
class Truth:
    """The truth about a run on the ideal channel."""

    waits: list[list[Waited]]
    schedule: tuple[ScheduledOperation, ...]


def run_ideal(
    directory: Path, *, compute_ns: tuple[int, ...], transfer_ns: int, k: int, rendezvous: str = "source"
) -> Truth:
    """Run the real runtime on an ideal channel whose transfers and computes are known."""
    size = len(compute_ns)
    channel = IdealChannel(size, occupancy_ns=transfer_ns, rendezvous=rendezvous)

    def program(transport: IdealTransport) -> list[Waited]:
        identity = RankIdentity(
            run_id="ideal", rank=transport.rank, host="h", boot_id="b", pid=1, start_time_ns=1 + transport.rank
        )
        recorder = Recorder.create(directory, identity)
        series = Series("o_proj", transport.group, 0, LAYERS, prefetch_step=k, transport=transport, recorder=recorder)
        layers = [nn.Linear(4, 4, bias=False) for _ in range(LAYERS)]
        for index, layer in enumerate(layers):
            series.register(index, layer)
        series.post_process()
        waits = []
        for step in range(STEPS):
            with series.step():
                for position in range(LAYERS):
                    series.reach(position)
                    transport.compute(compute_ns[transport.rank])
                    begin_ns = transport.now()
                    series.wait(position)
                    waits.append(Waited(step, position, begin_ns, transport.now()))
        series.close()
        recorder.close()
        return waits

    return Truth(channel.run(program), channel.schedule())


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("rendezvous", ["source", "group"])
@pytest.mark.parametrize(
    ("compute_ns", "transfer_ns"), [((MS, MS), MS // 3), ((MS, MS, MS), 3 * MS), ((MS, 3 * MS), MS)]
)
def test_facts_on_an_ideal_channel_are_the_channels_own(
    tmp_path: Path, k: int, rendezvous: str, compute_ns: tuple[int, ...], transfer_ns: int
) -> None:
    """Stall, slack, last issue, backlog and transfer of every wait equal the simulated truth, to the nanosecond."""
    truth = run_ideal(tmp_path, compute_ns=compute_ns, transfer_ns=transfer_ns, k=k, rendezvous=rendezvous)
    _, steps = read(tmp_path)
    assert [facts.step for facts in steps] == list(range(STEPS))
    compared = 0
    for rank, waits in enumerate(truth.waits):
        for wait in waits:
            facts, at = steps[wait.step], (rank, wait.position)
            number = wait.step * LAYERS + wait.position - k
            if number < 0 or wait.position % len(compute_ns) == rank:
                assert facts.stall_ns[at] == 0
                assert wait.begin_ns == wait.end_ns
                continue
            operation = truth.schedule[number]
            ready, last_issue = operation.ready_ns[rank], operation.last_issue_ns[rank]
            assert facts.stall_ns[at] == wait.end_ns - wait.begin_ns == max(0, ready - wait.begin_ns)
            assert facts.slack_ns[at] == max(0, wait.begin_ns - ready)
            assert facts.last_issue_ns[at] == last_issue
            assert facts.backlog_ns[at] == max(0, operation.previous_ready_ns - last_issue)
            assert facts.transfer_ns[at] == ready - max(last_issue, operation.previous_ready_ns)
            assert facts.wake_ns[at] == 0
            compared += 1
    assert compared > STEPS * LAYERS * (len(compute_ns) - 1) * 0.8


@pytest.mark.parametrize(
    ("compute_ms", "transfer_ms", "k"), [(1.0, 0.3, 1), (1.0, 2.0, 1), (0.5, 2.0, 2), (2.0, 1.9, 0), (1.0, 1.0, 1)]
)
def test_ratios_on_an_ideal_channel_are_the_analytic_ones(
    tmp_path: Path, compute_ms: float, transfer_ms: float, k: int
) -> None:
    """Stall ratio, efficiency and step time match the arithmetic of known transfers and computes within 2 %."""
    compute, transfer = round(compute_ms * MS), round(transfer_ms * MS)
    run_ideal(tmp_path, compute_ns=(compute, compute), transfer_ns=transfer, k=k)
    series, _ = read(tmp_path)
    bound = max(compute, transfer)  # per layer in the steady state: the slower of the two
    exposed = max(0.0, (transfer - compute) / bound)
    for rank in series.ranks:
        recent = rank.recent
        assert recent.steps == STEPS
        assert recent.step_ns / STEPS == pytest.approx(LAYERS * bound, rel=0.02)
        assert recent.stall_ratio == pytest.approx(exposed, rel=0.02, abs=1e-9)
        # All stall is on the half of the layers that this rank does not keep.
        assert recent.efficiency == pytest.approx(max(0.0, 1 - 2 * (bound - compute) / transfer), rel=0.02, abs=0.02)
        assert rank.effective_prefetch_step == k
    assert series.stragglers == ()


def test_an_aborted_forward_leaves_the_next_steps_facts_right(tmp_path: Path) -> None:
    """After an aborted step, operations still match across ranks, and the later steps are whole and attributed."""
    channel = IdealChannel(2, occupancy_ns=MS // 2)

    def program(transport: IdealTransport) -> None:
        identity = RankIdentity(
            run_id="ideal", rank=transport.rank, host="h", boot_id="b", pid=1, start_time_ns=1 + transport.rank
        )
        recorder = Recorder.create(tmp_path, identity)
        series = Series("o_proj", transport.group, 0, LAYERS, prefetch_step=2, transport=transport, recorder=recorder)
        for index in range(LAYERS):
            series.register(index, nn.Linear(4, 4, bias=False))
        series.post_process()
        for step in range(6):
            # Ranks abort at different layers of step 2.
            dies_at = 1 + 2 * transport.rank if step == 2 else LAYERS
            series.begin_step()
            for position in range(dies_at):
                series.reach(position)
                transport.compute(MS)
                series.wait(position)
            series.end_step(aborted=step == 2)
        series.close()
        recorder.close()

    channel.run(program)
    series, steps = read(tmp_path)
    assert [facts.step for facts in steps] == list(range(6))
    assert all(facts.complete for facts in steps)
    assert (steps[2].flags & TransferFlag.UNWAITED).any()
    assert steps[2].path is None
    # No rank observed when the last broadcast of the aborted step was ready, so its successor has no R_prev.
    assert facts_without_cause(steps[3]) in ([], [(1, 0)])
    for facts in steps[4:]:
        assert facts_without_cause(facts) == []
        assert facts.path is not None
    for rank in series.ranks:
        assert rank.totals.aborted_steps == 1
        assert rank.totals.sent + rank.totals.received == 6 * LAYERS


def facts_without_cause(facts: StepFacts) -> list[tuple[int, int]]:
    return [(int(r), int(p)) for r, p in zip(*(facts.receiver & ~facts.attributed).nonzero(), strict=True)]


GLOO_LAYERS = 4
GLOO_STEPS = 12


def gloo_rank(rank: int) -> list[tuple[int, int, int]]:
    """Run a series whose broadcasts all stall. Return (step, position, ns held), timed outside the runtime."""
    group = RankGroup.world()
    series = Series("o_proj", group, 0, GLOO_LAYERS, prefetch_step=0, recorder=process_recorder)
    for index in range(GLOO_LAYERS):
        layer = nn.Linear(2048, 2048, bias=False, dtype=torch.float32)
        series.register(index, layer)
    series.post_process()
    held = []
    for step in range(GLOO_STEPS):
        with series.step():
            for position in range(GLOO_LAYERS):
                series.reach(position)
                begin_ns = time.perf_counter_ns()
                series.wait(position)
                if position % group.world_size != rank:
                    held.append((step, position, time.perf_counter_ns() - begin_ns))
    series.close()
    return held


def test_stall_on_gloo_agrees_with_a_timer_around_the_wait(tmp_path: Path) -> None:
    """If every 16 MiB broadcast stalls, the reported stall matches a timer outside the runtime within 3 %."""
    environment = {"SWTRACE_DIR": str(tmp_path), "SWTRACE_RUN_ID": "gloo"}
    measured = run_ranks(2, gloo_rank, environment=environment)
    _, steps = read(tmp_path)
    ratios = []
    for rank, held in enumerate(measured):
        for step, position, ns in held[1:]:
            facts = steps[step]
            assert facts.receiver[rank, position]
            ratios.append(float(facts.stall_ns[rank, position]) / ns)
    assert len(ratios) > GLOO_STEPS
    assert max(ratios) <= 1.0
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.03)
