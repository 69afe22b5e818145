"""The header of a ring: identity, series and clocks survive, and damaged ones are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.header import decode_identity, encode_identity
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from tests.support.writer_process import identity, series_info


def test_identity_series_and_clocks_come_back(tmp_path: Path) -> None:
    """A reader knows the rank, each series (also those entered later, and refused ones) and both clocks."""
    me = identity(3)
    recorder = Recorder.create(tmp_path, me, records=64)
    with RingReader.open(recorder.path) as reader:
        assert (reader.identity, reader.series()) == (me, ())
        infos = (series_info("a"), series_info("b", refused="world size 1"), series_info("c", window_count=7))
        for number, info in enumerate(infos, 1):
            assert recorder.add_series(info).index == number - 1
            assert reader.series() == infos[:number]
        assert [len(reader.windows(index)) for index in range(3)] == [2, 0, 7]
        first = reader.anchor()
        recorder.renew_anchor()
        assert reader.anchor().monotonic_ns > first.monotonic_ns
        now = ClockAnchor.take()
        # Both anchors relate the same clocks, so they differ only by adjustments of CLOCK_REALTIME.
        assert abs(reader.anchor().to_realtime(now.monotonic_ns) - now.realtime_ns) < 10**9
        assert not reader.closed()
        recorder.close()
        assert reader.closed()
        assert not reader.alive()


@pytest.mark.parametrize(("ranks", "characters"), [(2, 300), (60, 60), (400, 0)])
def test_why_ranks_are_untraced_is_cut_to_what_fits(ranks: int, characters: int, tmp_path: Path) -> None:
    """Untraced ranks fit in the table for a group of any size, because their reasons are shortened or left out."""
    group = tuple(range(ranks))
    untraced = tuple(UntracedRank(rank, "\x1b" + 999 * "e") for rank in group[ranks // 2 :])
    recorder = Recorder.create(tmp_path, identity(), records=64)
    recorder.add_series(series_info(group_ranks=group, untraced=untraced))
    with RingReader.open(recorder.path) as reader:
        (info,) = reader.series()
    assert info.untraced == tuple(UntracedRank(rank.rank, ("?" + 999 * "e")[:characters]) for rank in untraced)
    recorder.close()


def test_text_that_terminals_cannot_show_is_replaced(tmp_path: Path) -> None:
    """A model path with control characters neither breaks the rank nor reaches a reader."""
    recorder = Recorder.create(tmp_path, identity(run_id="a/b\n\x1b[2J"), records=64)
    assert recorder.path.parent == tmp_path
    with RingReader.open(recorder.path) as reader:
        assert reader.identity.run_id == "a/b??[2J"
    recorder.close()


def test_the_ring_carries_the_clock() -> None:
    """A ring's header says which clock its instants are of."""
    shifted = replace(identity(), clock_offset="1000.000000000")
    decoded = decode_identity(encode_identity(shifted))
    assert decoded == shifted
    assert decoded.clock != identity().clock
