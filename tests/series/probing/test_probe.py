"""The probe on real ranks: what it moves, and what the profile says about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from swtrace.profile import Profile
from swtrace.series import RankGroup, Series
from swtrace.series.probing import probe as module
from swtrace.series.probing.block import Transfers
from swtrace.series.probing.channels import BroadcastChannel, Memory
from swtrace.series.probing.probe import Extent, _Block, _shifts, probe
from swtrace.settings import Settings
from tests.support.ranks import run_ranks

KIB = 1 << 10
SIZES = (64 * KIB, 4096 * KIB)
CONCURRENT = (1, 2)


@dataclass(frozen=True)
class Probed:
    """What a rank saw."""

    profile: Profile
    left_out: tuple[str, ...]
    kinds: int
    left: tuple[str, ...]
    """In the folder of rings, after the probe."""
    written: Profile
    """By a series, at its start."""
    steps: int
    """Of another series, whose probe failed."""
    received: list[int]
    """The byte in each window after a block of broadcasts."""


def _series(settings: Settings) -> Series:
    linears = [torch.nn.Linear(64, 64, bias=False) for _ in range(3)]
    series = Series("probed", RankGroup.world(), 0, 3, settings=settings)
    for layer, linear in enumerate(linears):
        series.register(layer, linear)
    series.post_process()
    return series


def _fails(*_: object) -> NoReturn:
    raise OSError("no memory")


def _started(folder: Path) -> tuple[Profile, int]:
    """Start a series that writes a profile, and one whose probe fails."""
    module._START_S = 0.0
    settings = Settings(directory=folder, run_id="probed", probe=folder.parent / "profile.json")
    _series(settings).close()
    torch.distributed.barrier()
    written = Profile.read(folder.parent / "profile.json")
    module._probed.clear()
    module.probe = _fails  # type: ignore[assignment]
    series = _series(settings)
    with series.step():
        for layer in range(3):
            series.reach(layer)
            series.wait(layer)
    steps = series.statistics().steps
    series.close()
    return written, steps


def _probed(_rank: int, folder: str) -> Probed:
    group, settings = RankGroup.world(), Settings(directory=Path(folder))
    module._BLOCK_NS = 5_000_000
    extent = Extent(SIZES, CONCURRENT, seconds=0.0)
    kinds: set[str] = set()
    outcome = probe(group, extent, settings, progress=lambda progress: kinds.add(progress.kind))
    torch.distributed.barrier()
    left = tuple(path.name for path in Path(folder).iterdir())
    memory = Memory(group.rank_in_group, SIZES[-1], 2)
    channel = BroadcastChannel(group, memory, 60)
    transfers = Transfers(channel, SIZES[0], 2, 8)
    transfers.issue()
    transfers.wait()
    received = memory.windows[: 2 * SIZES[0]].view(2, -1)
    assert (received == received[:, :1]).all()
    written, steps = _started(Path(folder))
    return Probed(outcome.profile, outcome.left_out, len(kinds), left, written, steps, received[:, 0].tolist())


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> list[Probed]:
    """A probe of two ranks, with the shortest time."""
    return run_ranks(2, _probed, str(tmp_path_factory.mktemp("rings")))


def test_every_kind_is_measured_however_short_the_time(probed: list[Probed]) -> None:
    """Both transports, each size and concurrency, idle and computing: one timing of each."""
    kinds = [(each.transport, each.bytes, each.concurrent, each.computing) for each in probed[0].profile.timings]
    assert sorted(kinds) == [
        (transport, nbytes, concurrent, computing)
        for transport in ("gloo", "pull")
        for nbytes in SIZES
        for concurrent in CONCURRENT
        for computing in (False, True)
    ]
    assert probed[0].left_out == ("h2d: torch sees no GPU for any rank",)
    assert {(each.source, each.receiver) for each in probed[0].profile.directions} == {(0, 1), (1, 0)}


def test_all_ranks_have_the_same_profile(probed: list[Probed]) -> None:
    """Any rank may write the file."""
    assert probed[0].profile.timings == probed[1].profile.timings
    assert Profile.parse(json.dumps(probed[0].profile.to_json())) == probed[0].profile


def test_a_pull_of_a_larger_size_takes_longer(probed: list[Probed]) -> None:
    """The figures are of what was asked for: 64 times the bytes take longer at the median, whatever else runs."""
    small, large = (each.seconds.p50 for each in probed[0].profile.of("pull", 1, computing=False))
    assert large > small


def test_real_bytes_arrive(probed: list[Probed]) -> None:
    """After a block of broadcasts, a window of each rank holds the other rank's bytes, and nothing of its own."""
    for rank, each in enumerate(probed):
        assert set(each.received) <= {1 - rank, 255}
        assert 1 - rank in each.received


def test_nothing_remains_in_the_folder(probed: list[Probed]) -> None:
    """The share folder of the probe is gone once all ranks are done."""
    assert probed[0].left == probed[1].left == ()


def test_a_series_with_a_file_to_write_is_timed_when_it_starts(probed: list[Probed]) -> None:
    """SWTRACE_PROBE: post-processing measures the size of its layers beside two others, and rank 0 writes them."""
    assert {each.bytes for each in probed[0].written.timings} == {64 * 64 * 4, 64 * KIB, 1 << 20}


def test_a_probe_that_fails_does_not_keep_a_series_from_running(probed: list[Probed]) -> None:
    """The failure is a warning: the series runs its steps."""
    assert [each.steps for each in probed] == [1, 1]


def test_clocks_of_two_hosts_are_aligned_by_transfers_in_both_directions() -> None:
    """Rank 1's clock is 5000 ns ahead; transfers take 100 ns each way, or longer."""
    ahead = _Block([5200, 5400], [10, 10], [5100, 5900], [0, 1], None)
    assert _shifts([_Block([0, 900], [10, 10], [50, 500], [0, 1], None), ahead]) == [0, 5000]


def test_a_size_beyond_the_largest_that_is_asked_for_is_measured_too() -> None:
    """The exact size of a layer is timed beside the powers of four."""
    assert Extent.up_to(1 << 20, [3 << 20]).sizes == (64 * KIB, 256 * KIB, 1 << 20, 3 << 20)
    assert Extent.up_to(1000).sizes == (1000,)
