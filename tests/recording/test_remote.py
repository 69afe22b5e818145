"""Recording through daemons on one or several hosts yields what the daemons see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.observing import HostRings, Roster, watch_rings
from swtrace.observing.events import Event, RankJoined, RecordsRead
from swtrace.observing.merged import Merged
from swtrace.recording import Recording
from swtrace.recording.remote import DaemonStream
from swtrace.recording.tee import Tee
from swtrace.recording.writer import RecordingWriter
from tests.support.daemon_threads import serving
from tests.support.recorded_run import RecordedRun
from tests.support.settling import until
from tests.support.simulated_recordings import replayed


def test_two_daemons_become_one_recording(tmp_path: Path) -> None:
    """Ranks of two hosts, read through their daemons, are recorded in one file, every record once."""
    runs = [RecordedRun(tmp_path / host, run_id=host) for host in ("a", "b")]
    path = tmp_path / "run.swrec"
    with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b, serving(tmp_path / "a") as again:
        addresses = [str(client.base_url) for client in (a, b, again)]
        with RecordingWriter(path, flush_s=0.0) as writer:
            tee = Tee(Merged([DaemonStream(address, again=False) for address in addresses]), writer)
            for run in runs:
                run.write(30)
            expected = sum(2 * run.written for run in runs)
            until(lambda: writer.statistics().records >= expected, tee.poll)
            for run in runs:
                run.close()
            until(lambda: sum(ring.closed for ring in tee.look().rings) == 4, tee.poll)
            tee.finish()
            tee.close()
    facts = {series.key.run_id: series for series in replayed(path).facts.series}
    for host in ("a", "b"):
        with watch_rings(tmp_path / host) as watch:
            watch.drain()
            watch.drain()
            watch.ledger.flush()
            (live,) = watch.ledger.facts().series
        assert facts[host] == live
    with Recording.open(path) as recording:
        assert recording.records == expected
        assert recording.missing().finished


def test_a_recorder_holds_nothing_once_it_knows_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are passed on, after the ranks of all hosts, although no daemon ever catches up with its rings."""
    look = HostRings.look
    monkeypatch.setattr(HostRings, "look", lambda rings: replace(look(rings), caught_up=False))
    runs = [RecordedRun(tmp_path / host, run_id=host) for host in ("a", "b")]
    with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b:
        for run in runs:
            run.write(10)
        origin = Merged([DaemonStream(str(client.base_url), again=False) for client in (a, b)])
        seen: list[Event] = []
        until(
            lambda: sum(len(event) for event in seen if isinstance(event, RecordsRead)) == 4 * runs[0].written,
            lambda: seen.extend(origin.poll().events),
        )
        origin.close()
    assert [isinstance(event, RankJoined) for event in seen[:4]] == [True] * 4
    for run in runs:
        run.close()


def test_a_run_can_be_asked_for_before_it_begins(tmp_path: Path) -> None:
    """Of several runs only the requested one is recorded, even if it begins later."""
    RecordedRun(tmp_path, run_id="other").write(10)
    with serving(tmp_path) as client, RecordingWriter(tmp_path / "run.swrec", flush_s=0.0) as writer:
        roster = Roster(Tee(DaemonStream(str(client.base_url), run_id="later"), writer))
        run = RecordedRun(tmp_path, run_id="later")
        run.write(10)
        until(lambda: writer.statistics().records >= 2 * run.written, roster.poll)
        run.close()
        roster.close()
        assert {rank.run_id for rank in roster.identities} == {"later"}
