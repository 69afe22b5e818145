"""The ledger's facts against the definitions, on schedules whose every instant is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.ledger.facts import CAUSES, Cause, StepFacts
from swtrace.trace.schema import Kind, TransferFlag
from tests.support import feeding
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts, true_steps
from tests.support.random_steps import random_schedule, same_step
from tests.support.schedules import Schedule, key, simulate


def carried_before(schedule: Schedule, number: int, rank: int) -> int:
    """Return the end of what the channel carried to a rank before an operation, by the definition."""
    info = schedule.infos[rank]

    def receivers(operation: int) -> list[int]:
        source = info.source((operation + info.prefetch_step) % info.num_layers)
        return [r for r in range(len(schedule.infos)) if r != source]

    operations = schedule.operations
    if info.queue == "serial":
        return max((operations[number - 1].ready[r] for r in receivers(number - 1)), default=0) if number else 0
    step = (number + info.prefetch_step) // info.num_layers
    no_later = min(len(operations), (step + 1) * info.num_layers - info.prefetch_step)
    mine = [n for n in range(no_later) if rank in receivers(n) and n != number]
    ready = operations[number].ready[rank]
    return max(
        (
            operations[n].ready[rank]
            for n in mine
            if operations[n].ready[rank] < ready or (operations[n].ready[rank] == ready and n < number)
        ),
        default=0,
    )


def by_definition(schedule: Schedule, facts: StepFacts, rank: int, position: int) -> dict[str, int]:
    """Return one wait's facts by the definitions, from the truth of the simulation, without arrays."""
    info = schedule.infos[rank]
    number = facts.step * info.num_layers + position - info.prefetch_step
    operation = schedule.operations[number]
    source = info.source(position)
    if info.rendezvous == "group":
        last_issue = max(operation.issued.values())
    else:
        last_issue = max(operation.issued[source], operation.issued[rank])
    before = carried_before(schedule, number, rank)
    begin, ready = int(facts.wait_begin_ns[rank, position]), operation.ready[rank]
    stall = max(0, ready - begin)
    skew = min(max(0, last_issue - begin), stall)
    queued = min(max(0, max(last_issue, before) - begin), stall) - skew
    return {
        "stall": stall,
        "slack": max(0, begin - ready),
        "last_issue": last_issue,
        "backlog": max(0, before - last_issue),
        "transfer": max(0, ready - max(last_issue, before)),
        "all_skew": skew,
        "queued": queued,
        "moving": stall - skew - queued,
    }


@settings(max_examples=150)
@given(
    ranks=st.integers(2, 4),
    layers=st.integers(3, 9),
    k=st.integers(0, 3),
    rendezvous=st.sampled_from(["source", "group"]),
    queue=st.sampled_from(["serial", "receiver", "none"]),
    start_layer=st.integers(0, 5),
    latency=st.integers(0, 200),
    occupancy=st.integers(1, 2000),
    seed=st.integers(0, 1 << 30),
)
def test_every_fact_is_its_definition(
    *,
    ranks: int,
    layers: int,
    k: int,
    rendezvous: str,
    queue: str,
    start_layer: int,
    latency: int,
    occupancy: int,
    seed: int,
) -> None:
    """Stall, slack, last issue, backlog, transfer and the split by cause equal the definitions to the nanosecond."""
    k = min(k, layers - 2)
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    schedule = simulate(
        ranks=ranks,
        layers=layers,
        k=k,
        steps=4,
        compute=lambda _r, _s, _p: chance.randrange(0, 3000),
        gap=lambda _r, _s: chance.randrange(0, 2000),
        latency=latency,
        occupancy=occupancy,
        rendezvous=rendezvous,
        queue=queue,
        start_layer=start_layer,
        wake=chance.randrange(0, 50),
    )
    ledger = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(ledger, schedule)
    steps = ledger.take_steps()
    assert [facts.step for facts in steps] == [0, 1, 2, 3]
    for facts in steps:
        assert facts.complete
        for rank in range(ranks):
            for position in range(layers):
                at = rank, position
                if schedule.infos[rank].source(position) == rank or facts.flags[at] & TransferFlag.PREFILLED:
                    assert not facts.receiver[at]
                    assert facts.stall_ns[at] == facts.slack_ns[at] == facts.transfer_ns[at] == 0
                    continue
                want = by_definition(schedule, facts, rank, position)
                assert facts.receiver[at]
                assert facts.attributed[at]
                assert facts.stall_ns[at] == want["stall"]
                assert facts.slack_ns[at] == want["slack"]
                assert facts.last_issue_ns[at] == want["last_issue"]
                assert facts.backlog_ns[at] == want["backlog"]
                assert facts.transfer_ns[at] == want["transfer"]
                cause = dict(zip(CAUSES, facts.cause_ns[:, rank, position].tolist(), strict=True))
                assert cause[Cause.ENTRY_SKEW] + cause[Cause.SKEW] == want["all_skew"]
                assert cause[Cause.BACKLOG] == want["queued"]
                assert cause[Cause.TRANSFER] == want["moving"]
                assert cause[Cause.UNATTRIBUTED] == 0


@pytest.mark.parametrize(("compute", "transfer", "k"), [(1000, 300, 0), (1000, 300, 1), (300, 1000, 1), (300, 1000, 2)])
def test_steady_state_is_the_analytic_one(compute: int, transfer: int, k: int) -> None:
    """With equal computes and transfers, stall per step is what arithmetic says, for each prefetch step."""
    layers, steps = 8, 40
    schedule = simulate(
        ranks=2, layers=layers, k=k, steps=steps, compute=lambda _r, _s, _p: compute, occupancy=transfer
    )
    ledger = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(ledger, schedule)
    recent = ledger.facts().series[0].ranks[0].recent
    # Issued at reach, waited for k+1 computes later. Where the channel is the bottleneck, a step takes
    # layers x transfer, of which layers x compute is not stall.
    expected = max(0.0, (transfer - compute) / transfer)
    assert recent.stall_ratio == pytest.approx(expected, rel=0.02, abs=1e-9)
    assert recent.transfer_ns == pytest.approx(recent.waits * transfer)
    assert recent.efficiency == pytest.approx(max(0.0, 1 - recent.stall_ns / recent.transfer_ns))


def test_prefetch_hides_what_k0_exposes() -> None:
    """A transfer longer than one compute and shorter than two stalls at k=0 and is hidden at k=1."""
    stall = {}
    for k in (0, 1):
        schedule = simulate(
            ranks=2, layers=6, k=k, steps=20, compute=lambda _r, _s, p: 900 if p % 2 else 500, occupancy=600
        )
        ledger = feeding.ledger(schedule, epsilon_ns=1)
        feeding.feed(ledger, schedule)
        stall[k] = ledger.facts().series[0].ranks[0].recent.stall_ns + ledger.facts().series[0].ranks[1].recent.stall_ns
    assert stall[0] > 0
    assert stall[1] == 0


def test_late_entry_is_entry_skew_of_that_rank() -> None:
    """A rank that enters a step 15 ms late costs its peer 15 ms at the first layer issued in the step: entry skew."""
    late = 15_000_000
    schedule = simulate(
        ranks=2,
        layers=6,
        k=1,
        steps=6,
        compute=lambda _r, _s, _p: 1_000_000,
        gap=lambda rank, step: late if rank == 1 and step == 3 else 0,
        occupancy=100_000,
    )
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    facts = ledger.take_steps()[3]
    entry = facts.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)]
    # Layer 1 is the first that rank 0 waits for after rank 1 came late: two computes after its own entry.
    assert entry[0].tolist() == [0, late - 2_000_000, 0, 0, 0, 0]
    assert facts.stall_ns[0].tolist() == [0, late - 2_000_000 + 100_000, 0, 0, 0, 0]
    assert facts.cause_ns[CAUSES.index(Cause.SKEW)].sum() == 0
    assert facts.entry_skew_ns.tolist() == [0, late]


def test_late_issue_within_a_step_is_skew_of_the_named_rank() -> None:
    """A rank that computes longer before one layer makes its peer wait for skew, and is named as the late one."""
    schedule = simulate(
        ranks=3,
        layers=6,
        k=0,
        steps=5,
        compute=lambda rank, step, p: 5_000_000 if (rank, step, p) == (2, 2, 1) else 1_000_000,
        occupancy=100_000,
    )
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    facts = ledger.take_steps()[2]
    # Layer 2 is rank 2's own: both others wait for its issue.
    assert facts.cause_ns[CAUSES.index(Cause.SKEW), [0, 1], 2].tolist() == [3_000_000, 3_000_000]
    assert facts.late_rank[[0, 1], 2].tolist() == [2, 2]
    assert facts.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)].sum() == 0


def test_skew_is_not_charged_to_efficiency() -> None:
    """A peer that issues late costs stall, not efficiency: only the exposed transfers count against it."""
    schedule = simulate(
        ranks=2,
        layers=6,
        k=1,
        steps=20,
        compute=lambda rank, _s, p: 9_000_000 if (rank, p) == (1, 0) else 1_000_000,
        occupancy=400_000,
    )
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    recent = ledger.facts().series[0].ranks[0].recent
    # Once per step rank 0 stalls at layer 3: for rank 1's late issue, and then for one transfer of three.
    assert recent.skew_ns > 10 * (recent.stall_ns - recent.skew_ns) > 0
    assert recent.efficiency == pytest.approx(2 / 3, rel=0.02)


def test_wake_is_kept_apart_from_stall() -> None:
    """What a wait itself costs after the weight was ready is wake, and no part of stall."""
    schedule = simulate(ranks=2, layers=4, k=0, steps=5, compute=lambda _r, _s, _p: 10, occupancy=500, wake=70)
    ledger = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(ledger, schedule)
    facts = ledger.take_steps()[2]
    stalled = facts.stall_ns > 0
    assert stalled.any()
    assert np.array_equal(facts.wake_ns > 0, stalled)
    assert set(facts.wake_ns[stalled].tolist()) == {70}


def test_effective_prefetch_step_differs_when_reach_was_late() -> None:
    """A broadcast that was reached later than planned lowers the effective prefetch step."""
    schedule = simulate(ranks=2, layers=6, k=2, steps=3, compute=lambda _r, _s, _p: 10, occupancy=5)
    records = schedule.records[0]
    late = (records["step"] == 2) & (records["position"] == 4) & (records["kind"] == 1)
    records["reach_position"][late] = 3
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    assert [facts.effective_prefetch_step for facts in ledger.facts().series[0].ranks] == [1, 2]


def test_unknown_peer_leaves_stall_unattributed() -> None:
    """Without the peers' records a stall has no cause, is counted as such, and efficiency is not claimed."""
    schedule = simulate(ranks=2, layers=6, k=1, steps=5, compute=lambda _r, _s, _p: 10, occupancy=500)
    ledger = feeding.ledger(schedule, ranks=[0])
    feeding.feed(ledger, schedule, ranks=[0])
    facts = ledger.facts().series[0]
    (only,) = facts.ranks
    assert only.rank == key(0)
    assert only.totals.stall_ns > 0
    assert only.totals.cause_ns[Cause.UNATTRIBUTED] == only.totals.stall_ns
    assert only.recent.efficiency is None
    assert only.recent.stall_ratio is not None


@pytest.mark.parametrize("rendezvous", ["source", "tree", "group"])
def test_who_issues_last_is_left_open_below_the_bound(rendezvous: str) -> None:
    """On two hosts, a named rank is the true one; none is named where another host's rank may have been later."""
    chance = random.Random(3)  # noqa: S311 - reproducible schedules
    made = simulate(
        ranks=4,
        layers=8,
        k=0,
        steps=20,
        compute=lambda _r, _s, _p: chance.randrange(1_000_000, 2_000_000),
        latency=150_000,
        occupancy=10_000,
        rendezvous=rendezvous,
    )
    for rank in (2, 3):  # makes the clocks' offset wrong by half of it
        received = (made.records[rank]["ready_ns"] > 0) & (made.records[rank]["source"] < 2)
        made.records[rank]["ready_ns"][received & (made.records[rank]["kind"] == Kind.TRANSFER)] += 100_000
    hosts = Hosts(made, (0, 0, 1, 1), (HostClock(), HostClock(HOUR_NS)))
    named = unnamed = misled = 0
    for step, truth in zip(hosts.fed().take_steps(), true_steps(made), strict=True):
        bound = int(step.clock_bound_ns.max())
        later = np.sort(step.issued_ns, axis=0)
        close = later[-1] - later[-2] < bound
        for rank, position in np.argwhere(step.attributed).tolist():
            late, true = int(step.late_rank[rank, position]), int(truth.late_rank[rank, position])
            assert late in {-1, true}
            named, unnamed = named + (late >= 0), unnamed + (late < 0)
            misled += late < 0 and step.last_issue_ns[rank, position] != step.issued_ns[true, position]
            assert late >= 0 or close[position] or rendezvous != "group"
    assert min(named, unnamed, misled) > 0


def test_summed_steps_hold_only_their_records() -> None:
    """Facts over the last steps add no columns to those in memory, and what is read afterwards is the same."""
    schedule = random_schedule(steps=12, ranks=32)
    ledger, fresh = feeding.ledger(schedule), feeding.ledger(schedule)
    for each in (ledger, fresh):
        feeding.feed(each, schedule)

    def held(step: StepFacts) -> int:
        """Return the bytes of a block of steps besides its records, per cell."""
        parts = (*vars(step.columns).values(), *vars(step.columns.block).values())  # type: ignore[attr-defined]
        columns = sum(part.nbytes for part in parts if isinstance(part, np.ndarray) and part.ndim == 3)
        block = step.columns.block  # type: ignore[attr-defined]
        return int((columns - block.cells.nbytes) / block.cells.size)

    steps = ledger.take_steps()
    before = held(steps[0])
    ledger.facts()
    assert held(steps[0]) < before
    assert all(same_step(*pair) for pair in zip(steps, fresh.take_steps(), strict=True))
