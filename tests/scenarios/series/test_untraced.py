"""A rank that cannot make its ring, or is set not to trace, still shares; it and its peers report that."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.errors import RingCreateError
from swtrace.ledger.facts import Cause
from swtrace.observing import watch_rings
from swtrace.series import RankGroup, Series, recording
from swtrace.series.recording import process_recorder
from swtrace.settings import Settings
from swtrace.trace.clocks import boot_id
from swtrace.trace.directory import ring_paths
from swtrace.trace.identity import RankKey, SeriesInfo, UntracedRank
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import SERIES_SLOTS
from tests.support.ranks import run_ranks
from tests.support.small_disk import tmpfs
from tests.support.stacks import Stack, true_weights

LAYERS = 5
STEPS = 6
VICTIM = 1
NOBODY = 65534


class Said(logging.Handler):
    """What swtrace logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("swtrace").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())


def share(rank: int, name: str = "s") -> tuple[bool, Series]:
    """Run forwards through a traced series; return whether every output was right."""
    del rank
    series = Series(name, RankGroup.world(), 0, LAYERS, recorder=as_somebody_else if _nobody else process_recorder)
    stack = Stack(series, 0, true_weights(LAYERS))
    series.post_process()
    right = True
    for seed in range(STEPS):
        with series.step():
            right &= stack.forward(seed)
    return right, series


# ---- real faults of the rings' folder --------------------------------------------------------------


def a_file(rings: Path) -> None:
    (rings.parent / "file").touch()
    os.environ["SWTRACE_DIR"] = str(rings.parent / "file")


def below_a_file(rings: Path) -> None:
    (rings.parent / "file").touch()
    os.environ["SWTRACE_DIR"] = str(rings.parent / "file" / "rings")


def no_large_files(_rings: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def not_writable(rings: Path) -> None:
    locked = rings.parent / "locked"
    locked.mkdir(mode=0o555)
    os.environ["SWTRACE_DIR"] = str(locked)
    if os.geteuid() == 0:  # who may write everywhere
        _nobody.append(NOBODY)


_nobody: list[int] = []


def as_somebody_else(run_id: str, rank: int, settings: Settings) -> Recorder:
    """Make the ring as a user who may not write there."""
    boot_id()  # Python's own files may be out of that user's reach: this imports a codec
    os.seteuid(_nobody[0])
    try:
        return process_recorder(run_id, rank, settings)
    finally:
        os.seteuid(0)


FAULTS = {
    a_file: "File exists",
    below_a_file: "Not a directory",
    no_large_files: "File too large",
    not_writable: "Permission denied",
}


def suffer(rank: int, rings: Path, fault: Callable[[Path], None] | None) -> tuple[bool, SeriesInfo, list[str]]:
    """Share, with a fault on one rank or, if the environment sets it, on both."""
    said = Said()
    if rank == VICTIM and fault is not None:
        fault(rings)
    right, series = share(rank)
    series.close()
    recording.close()
    return right, series.info, said.lines


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_cannot_make_its_ring_runs_untraced(fault: Callable[[Path], None], tmp_path: Path) -> None:
    """Its outputs are right, its log says once what happened, where, and which settings help; its peer names it."""
    rings = tmp_path / "rings"
    results = run_ranks(2, suffer, rings, fault, environment={"SWTRACE_DIR": str(rings)})
    assert [right for right, _, _ in results] == [True, True]
    (_, info, quiet), (_, same, lines) = results
    assert quiet == []
    (line,) = lines
    assert line.startswith(f"swtrace: rank {VICTIM} runs untraced: cannot make a ring of ")
    for part in (str(tmp_path), FAULTS[fault], "SWTRACE_DIR", "SWTRACE_RING_RECORDS"):
        assert part in line
    assert info.untraced == same.untraced
    (untraced,) = info.untraced
    assert untraced.rank == VICTIM
    assert FAULTS[fault] in untraced.reason
    (path,) = ring_paths(rings)
    assert "-0-" in path.name


def test_a_full_tmpfs_leaves_its_rank_untraced(tmp_path: Path) -> None:
    """As with a container's small /dev/shm: too little room is found at start-up, not by a signal in a step."""
    rings, small = tmp_path / "rings", tmp_path / "small"
    small.mkdir()
    with tmpfs(small, 3 << 20):
        results = run_ranks(2, suffer, rings, in_small, environment={"SWTRACE_DIR": str(rings)})
    assert [right for right, _, _ in results] == [True, True]
    assert "No space left on device" in results[0][1].untraced[0].reason
    (line,) = results[VICTIM][2]
    assert "No space left on device" in line


def in_small(rings: Path) -> None:
    os.environ["SWTRACE_DIR"] = str(rings.parent / "small")


def test_steps_finish_without_the_untraced_rank(tmp_path: Path) -> None:
    """Its records are neither awaited nor invented; what depends on them has no known cause."""
    run_ranks(2, suffer, tmp_path / "rings", below_a_file, environment={"SWTRACE_DIR": str(tmp_path / "rings")})
    with watch_rings(tmp_path / "rings", rescan_s=3600.0) as watch:
        watch.drain()
        assert not watch.origin._awaits_ranks()  # type: ignore[attr-defined]
        facts = watch.ledger.facts()
        (series,) = facts.series
        assert [rank.rank.rank for rank in series.ranks] == [1 - VICTIM]
        (rank,) = series.ranks
        assert (rank.totals.steps, series.pending_steps) == (STEPS, 0)
        assert facts.ranks[0].oddities.missing == 0
        assert rank.recent.transfer_ns == 0
        assert rank.recent.efficiency is None
        assert rank.totals.stall_ns == rank.totals.cause_ns[Cause.UNATTRIBUTED]
        assert series.stragglers == ()
        found = {
            finding.kind: finding.sentence for finding in verdict(series, watch.ledger.history(series.key)).findings
        }
        assert found["untraced"].startswith(f"Rank {VICTIM} runs untraced: cannot make a ring of")


def refuse(rank: int, rings: Path, strict: int) -> str:
    """Share with a rank that cannot make its ring, where one rank is strict."""
    if rank == strict:
        os.environ["SWTRACE_STRICT"] = "1"
    if rank == VICTIM:
        below_a_file(rings)
    try:
        share(rank)
    except RingCreateError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("strict", [0, VICTIM])
def test_strict_makes_it_an_error_on_all_ranks(strict: int, tmp_path: Path) -> None:
    """Whichever rank is strict, every rank raises, and names the one that has no ring."""
    rings = tmp_path / "rings"
    for rank, error in enumerate(run_ranks(2, refuse, rings, strict, environment={"SWTRACE_DIR": str(rings)})):
        assert error.startswith(f"series 's', rank {rank}: SWTRACE_STRICT=1, but not every rank can be traced: ")
        assert f"rank {VICTIM}: cannot make a ring of" in error
        assert "Not a directory" in error
        assert "SWTRACE_DIR" in error


def suffer_all(rank: int, _rings: Path) -> tuple[bool, list[str], list[int]]:
    """Share twice in one process, without any ring."""
    said = Said()
    right, first = share(rank)
    again, second = share(rank, "t")
    return right and again, said.lines, [len(first.info.untraced), len(second.info.untraced)]


def test_ranks_without_any_ring_serve(tmp_path: Path) -> None:
    """With a file in place of the folder no rank records, all outputs are right, and each says so once."""
    (tmp_path / "file").touch()
    results = run_ranks(2, suffer_all, tmp_path, environment={"SWTRACE_DIR": str(tmp_path / "file")})
    assert [right for right, _, _ in results] == [True, True]
    for rank, (_, lines, untraced) in enumerate(results):
        (line,) = lines
        assert line.startswith(f"swtrace: rank {rank} runs untraced: ")
        assert untraced == [2, 2]


# ---- set not to trace ----------------------------------------------------------------------------


def choose(rank: int, silent: tuple[int, ...]) -> tuple[bool, tuple[UntracedRank, ...], list[str], Any]:
    """Share while some ranks are set not to trace."""
    said = Said()
    os.environ["SWTRACE_TRACE"] = "0" if rank in silent else "1"
    right, series = share(rank)
    recording.close()
    layers = series._circle._layers.values()  # type: ignore[union-attr]
    observed = any(hasattr(layer.operation, "_on_ready") for layer in layers)
    return right, series.info.untraced, said.lines, observed


def test_sharing_without_tracing_is_a_setting(tmp_path: Path) -> None:
    """With SWTRACE_TRACE=0 weights are shared, no ring is made, nothing is warned of, and no broadcast is observed."""
    rings = tmp_path / "rings"
    silent = (0, 1)
    environment = {"SWTRACE_DIR": str(rings), "SWTRACE_STRICT": "1"}
    for right, untraced, lines, observed in run_ranks(2, choose, silent, environment=environment):
        assert right
        assert untraced == (UntracedRank(0, "SWTRACE_TRACE=0"), UntracedRank(1, "SWTRACE_TRACE=0"))
        assert lines == []
        assert observed is False
    assert not rings.exists()


def test_one_rank_may_be_set_not_to_trace(tmp_path: Path) -> None:
    """Ranks need not agree on SWTRACE_TRACE: those that record know which do not, even if strict."""
    rings = tmp_path / "rings"
    environment = {"SWTRACE_DIR": str(rings), "SWTRACE_STRICT": "1"}
    for right, untraced, lines, _ in run_ranks(2, choose, (0,), environment=environment):
        assert right
        assert untraced == (UntracedRank(0, "SWTRACE_TRACE=0"),)
        assert lines == []
    with watch_rings(rings) as watch:
        watch.drain()
        assert [rank.identity.rank for rank in watch.observe().ranks] == [1]
        assert not watch.origin._awaits_ranks()  # type: ignore[attr-defined]


# ---- a ring whose tables are full -----------------------------------------------------------------


def fill(rank: int) -> tuple[bool, list[str], tuple[UntracedRank, ...]]:
    """Share one series more than the ring of rank 1 has room for."""
    said = Said()
    if rank == VICTIM:
        recorder = recording.process_recorder(recording.propose_run_id().run_id, rank)
        for number in range(SERIES_SLOTS - 1):
            recorder.add_series(
                SeriesInfo(f"{number}", 0, 1, (), 0, "", 0, (), 0, "", "", "", 0, 0, refused="not shared")
            )
    fits, _ = share(rank, "fits")
    right, series = share(rank, "over")
    return fits and right, said.lines, series.info.untraced


def test_a_series_that_a_full_ring_has_no_room_for_runs_untraced(tmp_path: Path) -> None:
    """It is shared and its peers know why that rank records nothing of it; the series before it is recorded whole."""
    results = run_ranks(2, fill, environment={"SWTRACE_DIR": str(tmp_path)})
    assert [right for right, _, _ in results] == [True, True]
    reason = f"series 'over': a ring has room for {SERIES_SLOTS} series"
    assert [untraced for _, _, untraced in results] == [(UntracedRank(VICTIM, reason),)] * 2
    assert [len(lines) for _, lines, _ in results] == [0, 1]
    with watch_rings(tmp_path) as watch:
        watch.drain()
        by_name = {series.key.name: series for series in watch.ledger.facts().series}
        assert {name: (len(series.ranks), series.steps) for name, series in by_name.items()} == {
            "fits": (2, STEPS),
            "over": (1, STEPS),
        }
        assert all(rank.rank == RankKey(series.key.run_id, 0) for series in [by_name["over"]] for rank in series.ranks)
