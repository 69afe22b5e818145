"""Groups within a world, and worlds within a run: one run id, and no rank number twice."""

from __future__ import annotations

from pathlib import Path

from torch import distributed as dist

from swtrace.series import RankGroup, Series, recording
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Kind, TransferFlag
from tests.support.ranks import run_ranks
from tests.support.stacks import Stack, true_weights

LAYERS = 4


def steps(name: str, group: RankGroup, run_ranks: tuple[int, ...] | None = None) -> None:
    """Run a traced series over a group."""
    series = Series(name, group, 0, LAYERS, recorder=recording.process_recorder, run_ranks=run_ranks)
    stack = Stack(series, 0, true_weights(LAYERS))
    series.post_process()
    assert stack.forward(0)
    series.close()


def pairs_that_meet(rank: int) -> None:
    """Share within the pairs (0, 1) and (2, 3) first, then among all."""
    pair = (0, 1) if rank < 2 else (2, 3)
    device_group = dist.new_group(list(pair), backend="gloo", use_local_synchronization=True)
    steps("pair", RankGroup(pair, rank % 2, device_group))
    steps("all", RankGroup.world())


def test_disjoint_groups_agree_on_one_run(tmp_path: Path) -> None:
    """Groups that share no rank write under one run id, so that a later series may span them."""
    run_ranks(4, pairs_that_meet, environment={"SWTRACE_DIR": str(tmp_path)})
    rings = [RingReader.open(path) for path in tmp_path.iterdir()]
    assert sorted(ring.identity.rank for ring in rings) == [0, 1, 2, 3]
    assert len({ring.identity.run_id for ring in rings}) == 1
    groups = {ring.identity.rank: [info.group_ranks for info in ring.series()] for ring in rings}
    everybody = (0, 1, 2, 3)
    assert groups == {rank: [(0, 1) if rank < 2 else (2, 3), everybody] for rank in everybody}
    for ring in rings:
        ring.close()


def second_of_two_worlds(_rank: int) -> None:
    """Share in a torch world that follows another one in its run."""
    steps("s", RankGroup.world(), run_ranks=(2, 3))


def test_rings_use_the_runs_numbers(tmp_path: Path) -> None:
    """Torch numbers the ranks of each world from 0, but ring and group use the numbers of the run."""
    run_ranks(2, second_of_two_worlds, environment={"SWTRACE_DIR": str(tmp_path), "SWTRACE_RUN_ID": "two-worlds"})
    rings = [RingReader.open(path) for path in tmp_path.iterdir()]
    assert sorted((ring.identity.run_id, ring.identity.rank) for ring in rings) == [
        ("two-worlds", 2),
        ("two-worlds", 3),
    ]
    for ring in rings:
        (info,) = ring.series()
        assert info.group_ranks == (2, 3)
        assert info.group_ranks[info.rank_in_group] == ring.identity.rank
        ring.close()


STAGES = ((0, 5), (5, 12))
K = 2


def stage_of_a_pipeline(rank: int) -> None:
    """Share within a pipeline stage; the stages split the model's layers unevenly."""
    stage, group_rank = divmod(rank, 2)
    start, end = STAGES[stage]
    pair = (2 * stage, 2 * stage + 1)
    device_group = dist.new_group(list(pair), backend="gloo", use_local_synchronization=True)
    group = RankGroup(pair, group_rank, device_group)
    series = Series("s", group, start, end, prefetch_step=K, recorder=recording.process_recorder)
    stack = Stack(series, start, true_weights(end - start))
    series.post_process()
    for step in range(3):
        assert stack.forward(step)
    series.close()


def test_uneven_stages_prefetch_as_far_as_asked(tmp_path: Path) -> None:
    """Each stage's series has its own first layer, and on every stage broadcasts start k layers ahead."""
    run_ranks(4, stage_of_a_pipeline, environment={"SWTRACE_DIR": str(tmp_path)})
    rings = [RingReader.open(path) for path in tmp_path.iterdir()]
    assert len({ring.identity.run_id for ring in rings}) == 1
    for ring in rings:
        (info,) = ring.series()
        assert (info.start_layer, info.start_layer + info.num_layers) == STAGES[ring.identity.rank // 2]
        records = ring.read()
        moves = records[records["kind"] == Kind.TRANSFER]
        moves = moves[(moves["flags"] & TransferFlag.PREFILLED) == 0]
        ahead = (moves["position"].astype(int) - moves["reach_position"].astype(int)) % info.num_layers
        assert len(moves) >= 2 * info.num_layers
        assert set(ahead.tolist()) == {K}
        ring.close()
