"""All origins give the same facts for the same records; a lost origin says so and is used again when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from swtrace import http_client
from swtrace.cli.summary import summarise
from swtrace.errors import SettingsError
from swtrace.ledger.facts import StepFacts
from swtrace.observing import HostRings, Link, Origin, Roster, watch_rings
from swtrace.observing.merged import Merged
from swtrace.recording import Recording
from swtrace.recording.playback import Controls, Playback
from swtrace.recording.remote import DaemonStream
from swtrace.recording.replay import Replay
from swtrace.trace.identity import SeriesInfo, UntracedRank
from swtrace.trace.schema import Clock
from tests.support.daemon_threads import serving
from tests.support.damaged_answers import DAMAGED, answering
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun, series_info
from tests.support.settling import settled
from tests.support.simulated_recordings import record_rings
from tests.support.simulated_rings import write


def stalled(folder: Path) -> tuple[int, int]:
    """Write a run of four ranks, one of which is slow; return how many steps are kept, and ranks."""
    with write(folder, "straggler") as writer:
        return min(64, writer.steps), 4


def untimed(folder: Path) -> tuple[int, int]:
    """Write a device's run of which only some steps are timed."""
    run = RecordedRun(folder, clock=Clock.DEVICE)
    run.write_every(4, 12)
    run.close()
    return 3, 2


class WithoutRank2(RecordedRun):
    """Two ranks of three: the third could not make its ring."""

    def described(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it."""
        return series_info(rank, 3, untraced=(UntracedRank(2, "No space left on device"),))


def untraced(folder: Path) -> tuple[int, int]:
    """Write a run one of whose ranks records nothing."""
    run = WithoutRank2(folder)
    run.write(8)
    run.close()
    return 8, 2


def origins(folder: Path, halves: list[Path], recorded: Path, stack: ExitStack) -> Iterator[tuple[str, Origin]]:
    """Yield every kind of origin, over the same records."""

    def daemon(of: Path) -> DaemonStream:
        return DaemonStream(str(stack.enter_context(serving(of)).base_url))

    yield "rings", HostRings(folder)
    yield "rings of two folders", Merged([HostRings(half) for half in halves])
    yield "daemon", daemon(folder)
    yield "daemons of two hosts", Merged([daemon(half) for half in halves])
    yield "two daemons of one host", Merged([daemon(folder), daemon(folder)])
    yield "recording", Replay(Recording.open(recorded))
    to_the_end = Controls()
    to_the_end.seek(1.0)
    yield "played recording", Playback(Recording.open(recorded), to_the_end)


@pytest.mark.parametrize("run", [stalled, untimed, untraced], ids=["straggler", "untimed", "untraced"])
def test_every_origin_gives_the_same_numbers_on_the_same_records(
    tmp_path: Path, run: Callable[[Path], tuple[int, int]]
) -> None:
    """Live, remote, replayed, merged: facts, steps, windows and verdicts are equal to the last digit."""
    folder = tmp_path / "rings"
    steps, ranks = run(folder)
    recorded = tmp_path / "run.swrec"
    record_rings(folder, recorded)
    halves = [tmp_path / "even", tmp_path / "odd"]
    for half in halves:
        half.mkdir()
    for number, path in enumerate(sorted(folder.glob("*.swt"))):
        (halves[number % 2] / path.name).hardlink_to(path)

    with ExitStack() as stack:
        seen = {}
        for name, origin in origins(folder, halves, recorded, stack):
            with Roster(origin) as roster:
                seen[name] = settled(roster, steps, ended=True)
        expected = seen.pop("rings")
        assert len(expected.ranks) == ranks
        for name, other in seen.items():
            assert other.facts.series == expected.facts.series, name
            assert other.rank_facts() == expected.rank_facts(), name
            assert [rank.identity for rank in other.ranks] == [rank.identity for rank in expected.ranks], name
            assert [rank.series for rank in other.ranks] == [rank.series for rank in expected.ranks], name
            assert [rank.ring.windows for rank in other.ranks] == [rank.ring.windows for rank in expected.ranks], name
            assert [rank.died for rank in other.ranks] == [rank.died for rank in expected.ranks], name
            assert [rank.run_began_ns for rank in other.ranks] == [rank.run_began_ns for rank in expected.ranks], name
            assert other.clock_offsets == expected.clock_offsets, name
            assert summarise(other).series == summarise(expected).series, name
            assert other.history.keys() == expected.history.keys(), name
            for series, history in expected.history.items():
                assert len(other.history[series]) == len(history) == steps, name
                for mine, theirs in zip(other.history[series], history, strict=True):
                    for field in fields(StepFacts):
                        if field.name != "path":
                            np.testing.assert_equal(getattr(mine, field.name), getattr(theirs, field.name), name)
                    assert (mine.path is None) == (theirs.path is None), name
                    if mine.path is not None and theirs.path is not None:
                        assert mine.path.length_ns == theirs.path.length_ns, name
                        np.testing.assert_equal(mine.path.excess_ns, theirs.path.excess_ns, name)


def test_ages_in_a_recording_are_counted_from_the_newest_record(tmp_path: Path) -> None:
    """What a window held when the run ended is as old as it was then, not 0."""
    stalled(tmp_path / "rings")
    record_rings(tmp_path / "rings", tmp_path / "run.swrec")
    with Roster(Replay(Recording.open(tmp_path / "run.swrec"))) as roster:
        roster.drain()
        seen = roster.observe()
    facts = seen.rank_facts()
    assert [rank.ring.taken_ns for rank in seen.ranks] == [facts[rank.key].last_record_ns for rank in seen.ranks]
    assert all(rank.ring.taken_ns > 0 for rank in seen.ranks)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_answer_is_said_and_raises_nothing(damage: str) -> None:
    """An address where something else answers gives a lost origin with the reason, and no exception."""
    with answering(DAMAGED[damage]) as address:
        roster = Roster(DaemonStream(address))
        deadline = time.monotonic() + patience()
        while roster.observe().origins[0].link is not Link.LOST and time.monotonic() < deadline:
            roster.poll()
            time.sleep(0.02)
        (status,) = roster.observe().origins
        roster.close()
    assert status.link is Link.LOST
    assert status.detail
    assert "\n" not in status.detail


def test_a_lost_daemon_is_said_to_be_lost_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its daemon, the last facts stay and the reason is given; with a new one, it goes on from there."""
    monkeypatch.setattr("swtrace.recording.remote._RETRY_S", 0.05)
    steps = 64
    with write(tmp_path, "stalled", ranks=2, layers=6, steps=200):
        pass
    with serving(tmp_path) as client:
        address = str(client.base_url)
        roster = Roster(DaemonStream(address, newest_steps=72))
        before = settled(roster, steps, ended=True)
    deadline = time.monotonic() + patience()
    while roster.observe().origins[0].link is not Link.LOST and time.monotonic() < deadline:
        roster.poll()
        time.sleep(0.02)
    lost = roster.observe()
    with serving(tmp_path, port=int(address.rpartition(":")[2])):
        while roster.observe().origins[0].link is not Link.LIVE and time.monotonic() < deadline:
            roster.poll()
            time.sleep(0.02)
        again = settled(roster, steps, ended=True)
    roster.close()

    assert lost.origins[0].link is Link.LOST
    assert lost.origins[0].detail
    assert lost.facts.series == before.facts.series == again.facts.series
    assert [rank.before for rank in again.ranks] == [rank.before for rank in before.ranks]
    assert [rank.lost for rank in again.ranks] == [0, 0]
    assert before.ranks[0].before > 0
    assert again.origins[0].link is Link.LIVE


@pytest.mark.parametrize("every", [2, 5])
def test_a_stream_of_one_step_in_n_holds_these_steps_whole(tmp_path: Path, every: int) -> None:
    """A viewer that asks for fewer steps gets runs of four of them with all of their records, and no other."""
    with write(tmp_path, "stalled", steps=60):
        pass
    with serving(tmp_path) as client, watch_rings(tmp_path) as whole:
        whole.drain()
        roster = Roster(DaemonStream(str(client.base_url), every=every))
        seen = settled(roster, sum(step % (4 * every) < 4 for step in range(60)), ended=True)
        roster.close()
        (steps,), (all_steps,) = seen.history.values(), whole.observe().history.values()
    assert [step.step for step in steps] == [step.step for step in all_steps if step.step % (4 * every) < 4]
    by_number = {step.step: step for step in all_steps}
    for step in steps:
        np.testing.assert_equal(step.stall_ns, by_number[step.step].stall_ns)
        assert step.complete
        if step.step % (4 * every):
            np.testing.assert_equal(step.cause_ns, by_number[step.step].cause_ns)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host", "host:9465"),
        ("host:1234", "host:1234"),
        ("http://host:1234/", "host:1234"),
        ("https://host", "https://host:9465"),
        ("[::1]:99", "[::1]:99"),
        ("::1", "[::1]:9465"),
    ],
)
def test_addresses_are_read_as_people_write_them(address: str, expected: str) -> None:
    """A daemon's address may leave out the port or carry ``http://`` or ``https://``."""
    assert http_client.address(address) == expected


@pytest.mark.parametrize(
    "address", ["", "ftp://host:1", "host:port", "host:0", "http://host:1/api", "http://", "a://b://c"]
)
def test_addresses_that_cannot_be_meant_are_refused(address: str) -> None:
    """An invalid address is a readable error."""
    with pytest.raises(SettingsError, match="HOST:PORT"):
        http_client.address(address)
