"""Ranks that pull: independent processes share layers on one host, whatever the others do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from swtrace.errors import SwtraceError
from swtrace.placement import source_rank
from swtrace.series import RankGroup, Series
from swtrace.settings import Settings
from tests.support.patience import eventually
from tests.support.ranks import Rank, RankFailedError, run_ranks
from tests.support.replicas import replica, run_replicas
from tests.support.stacks import WIDTH, ForwardDiedError, Stack, true_weights

LAYER_BYTES = WIDTH * WIDTH * 4
TAG_BYTES = 64


def pulling(
    rank: int,
    ranks: int,
    folder: str,
    run_id: str,
    *,
    num_layers: int = 5,
    start: int = 0,
    k: int = 1,
    windows: str = "static",
    layers: tuple[int, ...] | None = None,
    seed: int = 0,
    timeout_s: float = 60.0,
    make: Callable[[int], nn.Module] | None = None,
) -> Stack:
    """Return the layers of a series on one replica, post-processed."""
    series = Series(
        "s",
        RankGroup(tuple(range(ranks)), rank),
        start,
        start + num_layers,
        layers=layers,
        prefetch_step=k,
        windows=windows,
        check=True,
        settings=Settings(directory=Path(folder), run_id=run_id, timeout_s=timeout_s),
    )
    stack = Stack(series, start, true_weights(num_layers, seed), *((make,) if make is not None else ()))
    series.post_process()
    return stack


SHAPES = [
    (num_layers, start, k, windows, layers)
    for windows in ("static", "rolling")
    for num_layers, start, k, layers in (
        (2, 0, 0, None),
        (3, 4, 1, None),
        (9, 2, 3, (2, 5, 6, 8, 10)),
        (8, 1, 2, None),
        (18, 0, 7, (1, 2, 4, 6, 9, 10, 11, 14, 16)),
    )
]


def computes(rank: int, ranks: int, folder: str) -> list[tuple[bool, int, int, int]]:
    """Run forwards, a different number on each rank, some of them broken off."""
    told = []
    for number, (num_layers, start, k, windows, layers) in enumerate(SHAPES):
        run_id = f"run {number}"
        stack = pulling(
            rank, ranks, folder, run_id, num_layers=num_layers, start=start, k=k, windows=windows, layers=layers
        )
        equal = True
        for step in range(6 + 5 * rank):
            stop_at = (step + rank) % num_layers if step % 4 == 3 else None
            try:
                with stack.series.step():
                    equal &= stack.forward(step, stop_at=stop_at)
            except ForwardDiedError:
                pass
        held = stack.series.statistics()
        told.append((equal, held.owned_bytes, held.window_bytes, held.windows))
        stack.series.close()
    return told


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_outputs_equal_resident_weights_bit_by_bit(ranks: int, tmp_path: Path) -> None:
    """Over shapes, policies, aborted forwards and ranks; each rank holds its layers and its windows, and no more.

    Some series share only some layers of a stack.
    """
    by_rank = run_replicas(ranks, computes, ranks, str(tmp_path))
    for rank, told in enumerate(by_rank):
        for (num_layers, start, _, _, layers), (equal, owned, window_bytes, windows) in zip(SHAPES, told, strict=True):
            assert equal
            count = len(layers or range(num_layers))
            mine = sum(source_rank(start + position, ranks) == rank for position in range(count))
            assert owned == mine * (LAYER_BYTES + TAG_BYTES)
            assert window_bytes == windows * (LAYER_BYTES + TAG_BYTES)
    assert list(tmp_path.iterdir()) == []


def steps_at_own_rate(rank: int, folder: str, steps: tuple[int, ...]) -> bool:
    """Run so many steps as fast as possible, once every rank has started."""
    stack = pulling(rank, len(steps), folder, "rates", num_layers=4, k=2)
    equal = True
    for step in range(steps[rank]):
        with stack.series.step():
            equal &= stack.forward(step % 7)
    stack.series.close()
    return equal


def test_step_rates_may_differ(tmp_path: Path) -> None:
    """Of two ranks, one runs ten times as many steps; no byte is wrong, and neither waits for the other."""
    assert run_replicas(2, steps_at_own_rate, str(tmp_path), (10_000, 1_000)) == [True, True]


def serves(rank: int, ranks: int, folder: str, seed: int = 0) -> str:
    """Run forwards until a file ``stop`` appears; say by files that this rank runs, and how far it is."""
    stack = pulling(rank, ranks, folder, "serving", seed=seed, timeout_s=20.0)
    step = 0
    equal = True
    while not Path(folder, "stop").exists():
        with stack.series.step():
            equal &= stack.forward(step % 5)
        step += 1
        Path(folder, f"step {rank} {os.getpid()}").write_text(str(step))
    stack.series.close()
    return "right" if equal else "wrong"


def _steps(folder: Path, each: Rank) -> int:
    file = folder / f"step {each.number} {each.process.pid}"
    return int(file.read_text() or "0") if file.exists() else 0


def _await_steps(folder: Path, *replicas: Rank, beyond: Sequence[int] = ()) -> None:
    """Wait until each replica has run some steps."""
    for each, steps in zip(replicas, beyond or [0] * len(replicas), strict=True):
        eventually(partial(_ran, folder, each, steps), f"replica {each.number} runs")


def _ran(folder: Path, each: Rank, steps: int) -> bool:
    return _steps(folder, each) > steps


def _await_more_steps(folder: Path, *replicas: Rank) -> None:
    """Wait until each replica has run ten more steps."""
    _await_steps(folder, *replicas, beyond=[_steps(folder, each) + 10 for each in replicas])


def _share_folder(folder: Path) -> Path:
    (path,) = folder.glob("pull-*")
    return path


def test_a_killed_rank_stops_nobody_and_may_come_back(tmp_path: Path) -> None:
    """The others go on with its layers, and its successor maps those same layers."""
    with replica(0, serves, 3, str(tmp_path)) as first, replica(1, serves, 3, str(tmp_path)) as second:
        with replica(2, serves, 3, str(tmp_path)) as third:
            _await_steps(tmp_path, first, second, third)
            layers = {file.name: file.stat().st_ino for file in _share_folder(tmp_path).glob("layer-*")}
            third.process.kill()
            third.process.join()
        _await_more_steps(tmp_path, first, second)
        with replica(2, serves, 3, str(tmp_path)) as successor:
            _await_steps(tmp_path, successor)
            assert {file.name: file.stat().st_ino for file in _share_folder(tmp_path).glob("layer-*")} == layers
            Path(tmp_path, "stop").touch()
            assert [each.result() for each in (first, second, successor)] == ["right"] * 3
            for each in (first, second, successor):
                each.process.join()
    assert not list(tmp_path.glob("pull-*"))


def test_what_killed_ranks_leave_is_removed_by_the_next_start(tmp_path: Path) -> None:
    """Also if the next run has another id."""
    with replica(0, serves, 2, str(tmp_path)) as first, replica(1, serves, 2, str(tmp_path)) as second:
        _await_steps(tmp_path, first, second)
        for each in (first, second):
            each.process.kill()
            each.process.join()
    assert list(_share_folder(tmp_path).glob("layer-*"))
    assert run_replicas(2, steps_at_own_rate, str(tmp_path), (3, 3)) == [True, True]
    assert not list(tmp_path.glob("pull-*"))


def refused(rank: int, folder: str, seeds: tuple[int, ...], timeout_s: float = 60.0) -> str:
    """Return the error of a start."""
    try:
        stack = pulling(rank, len(seeds), folder, "refused", seed=seeds[rank], timeout_s=timeout_s)
    except SwtraceError as error:
        return f"{type(error).__name__}: {error}"
    stack.series.close()
    return "started"


def test_replicas_of_different_checkpoints_are_refused(tmp_path: Path) -> None:
    """Even though no rank holds the layers in which the other one differs; the error names layer and ranks."""
    said = run_replicas(2, refused, str(tmp_path), (0, 1))
    for rank, text in enumerate(said):
        assert text.startswith(
            f"DisagreementError: series 's', rank {rank}, layer 0: the ranks disagree on the weights that they loaded, "
            f"so their checkpoints differ: rank 0 has "
        )
    assert list(tmp_path.iterdir()) == []


def test_a_restarted_rank_with_another_checkpoint_is_refused_and_stops_nobody(tmp_path: Path) -> None:
    """It is refused as if it had been there at the first start."""
    with replica(0, serves, 2, str(tmp_path)) as first:
        with replica(1, serves, 2, str(tmp_path)) as second:
            _await_steps(tmp_path, first, second)
            second.process.kill()
            second.process.join()
        with (
            replica(1, serves, 2, str(tmp_path), 9) as other,
            pytest.raises(RankFailedError, match="checkpoints differ"),
        ):
            other.result()
        _await_more_steps(tmp_path, first)
        Path(tmp_path, "stop").touch()
        assert first.result() == "right"


def test_a_rank_that_never_starts_is_named_within_the_timeout(tmp_path: Path) -> None:
    """And the rank that waited for it leaves nothing behind."""
    with replica(0, refused, str(tmp_path), (0, 0, 0), 1.0) as lone:
        assert lone.result() == (
            "PeerLostError: series 's', rank 0, before the first step: the ranks could not agree: ranks 1, 2 did not "
            "start, or died within 1 s (SWTRACE_TIMEOUT); all replicas need the same SWTRACE_DIR and SWTRACE_RUN_ID"
        )
    assert list(tmp_path.iterdir()) == []


def starts_late(rank: int, folder: str) -> bool:
    """Rank 1 starts some time after rank 0, which waits for it."""
    if rank:
        eventually(lambda: list(Path(folder).glob("pull-*/said-0-0")), "rank 0 waits")
        time.sleep(0.2)
    return steps_at_own_rate(rank, folder, (5, 5))


def test_a_rank_may_start_late(tmp_path: Path) -> None:
    """The other one waits for it."""
    assert run_replicas(2, starts_late, str(tmp_path)) == [True, True]


class Halved(nn.Linear):
    """A linear whose post-processing changes its weight."""

    def process_weights_after_loading(self) -> None:
        """Halve the weight."""
        self.weight.data.mul_(0.5)


def halved(_position: int) -> nn.Linear:
    """Return such a linear."""
    return Halved(WIDTH, WIDTH, bias=False)


def processed(rank: int, folder: str, *, stay: bool) -> str:
    """Run some forwards of a series whose post-processing changes the weights; then, perhaps, wait to be killed."""
    try:
        stack = pulling(rank, 2, folder, "processed", make=halved)
    except SwtraceError as error:
        return f"{type(error).__name__}: {error}"
    stack.weights = [weight * 0.5 for weight in stack.weights]
    for step in range(5):
        with stack.series.step():
            assert stack.forward(step)
    Path(folder, f"step {rank} {os.getpid()}").write_text("5")
    while stay and not Path(folder, "stop").exists():
        time.sleep(0.01)
    stack.series.close()
    return "right"


def _stays(rank: int, folder: str) -> str:
    return processed(rank, folder, stay=True)


def test_weights_may_be_post_processed_but_not_a_second_time(tmp_path: Path) -> None:
    """All ranks have the processed weights; a rank that restarts is told why it cannot have them."""
    with replica(0, _stays, str(tmp_path)) as first:
        with replica(1, _stays, str(tmp_path)) as second:
            _await_steps(tmp_path, first, second)
            second.process.kill()
            second.process.join()
        assert not list(_share_folder(tmp_path).glob("raw-*"))
        with replica(1, _stays, str(tmp_path)) as again:
            assert "processing changed them: restart all replicas" in again.result()
        Path(tmp_path, "stop").touch()
        assert first.result() == "right"


def test_ranks_without_a_run_id_are_told_to_set_one() -> None:
    """They could not find each other."""
    series = Series("s", RankGroup((0, 1), 0), 0, 2, prefetch_step=0, settings=Settings())
    Stack(series, 0, true_weights(2))
    with pytest.raises(SwtraceError, match="series 's', rank 0: set SWTRACE_RUN_ID to one value on all ranks"):
        series.post_process()


def test_a_torch_world_may_pull_too(tmp_path: Path) -> None:
    """With ``SWTRACE_TRANSPORT=pull``; the ranks agree on the run id as always."""
    assert run_ranks(2, in_a_world, str(tmp_path)) == ["pull"] * 2


def in_a_world(_rank: int, folder: str) -> str:
    """Pull within a torch world."""
    settings = Settings(directory=Path(folder), transport="pull")
    series = Series("s", RankGroup.world(), 0, 3, settings=settings)
    stack = Stack(series, 0, true_weights(3))
    series.post_process()
    for step in range(3):
        with series.step():
            assert stack.forward(step)
    series.close()
    assert torch.is_tensor(stack.weights[0])
    return series.info.transport
