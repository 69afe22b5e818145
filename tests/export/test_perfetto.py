"""Perfetto reads from a trace the same facts as the ledger has."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from swtrace.export.perfetto import PerfettoWriter
from swtrace.session import Session
from tests.support.commands import checked
from tests.support.feeding import ledger
from tests.support.finished_steps import origins
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.perfetto_reader import read
from tests.support.schedules import RUN, key, simulate
from tests.support.simulated_pull import replicas


def test_perfetto_reads_the_counts_and_durations_of_the_ledger(
    recording: Path, session: Session, tmp_path: Path
) -> None:
    """Read with Perfetto's schema, slices of waits, broadcasts and steps have the ledger's counts and durations."""
    path = tmp_path / "run.pftrace"
    said = json.loads(checked("export", recording, "-f", "perfetto", "-o", path, "--json").stdout)
    slices = read(path)
    steps = list(session.steps())
    of = {name: [each for each in slices if each.category == name] for name in ("step", "wait", "stall", "broadcast")}
    assert len(of["step"]) == said["steps"] == sum(int(step.ended.sum()) for step in steps)
    assert sum(each.end_ns - each.begin_ns for each in of["step"]) == sum(int(s.duration_ns.sum()) for s in steps)
    assert len(of["wait"]) == said["waits"] == sum(int(step.present.sum()) for step in steps)
    assert sum(each.end_ns - each.begin_ns for each in of["stall"]) == sum(int(s.stall_ns.sum()) for s in steps)
    assert sum(each.arguments["stall_ns"] for each in of["wait"]) == said["stall_ns"]
    lasted = [(s.ready_ns - s.issued_ns)[s.receiver].sum() for s in steps]
    assert sum(each.end_ns - each.begin_ns for each in of["broadcast"]) == sum(lasted)
    assert sum(each.arguments.get("transfer_ns", 0) for each in of["broadcast"]) == sum(
        int(s.transfer_ns.sum()) for s in steps
    )


def test_perfetto_has_a_track_per_rank_and_flows_from_send_to_wait(recording: Path, tmp_path: Path) -> None:
    """Each rank has its tracks, and each flow leads forward in time from a send via a broadcast to the wait for it."""
    path = tmp_path / "run.pftrace"
    checked("export", recording, "-f", "perfetto", "-o", path)
    slices = read(path)
    assert {each.track[0].split(" (")[0] for each in slices} == {"rank 0", "rank 1", "rank 2"}
    assert {each.track[1] for each in slices} == {"self_attn.o_proj"}
    assert {"steps", "waits", "sends", "window 0", "window 1"} <= {each.track[2] for each in slices}
    sends = {flow: each for each in slices if each.category == "send" for flow in each.flows_out}
    waits = {flow: each for each in slices if each.category == "wait" for flow in each.flows_in}
    broadcasts = [each for each in slices if each.category == "broadcast"]
    assert len(broadcasts) == len(waits) > 0
    for each in broadcasts:
        (to_wait,), (from_send,) = each.flows_out, each.flows_in
        assert each.name == waits[to_wait].name == sends[from_send].name
        assert each.track[0] == waits[to_wait].track[0] != sends[from_send].track[0]
        assert each.arguments["step"] == waits[to_wait].arguments["step"] == sends[from_send].arguments["step"]
        assert each.begin_ns <= waits[to_wait].end_ns


def test_a_perfetto_trace_deflates_well(recording: Path, tmp_path: Path) -> None:
    """Names are interned, so a trace takes less than 100 bytes per event, and less than 25 compressed."""
    path = tmp_path / "run.pftrace"
    checked("export", recording, "-f", "perfetto", "-o", path)
    events = sum(2 if each.end_ns > each.begin_ns else 1 for each in read(path))
    assert path.stat().st_size / events < 100
    assert len(gzip.compress(path.read_bytes())) / events < 25


def test_flows_between_hosts_lead_forward_in_time(tmp_path: Path) -> None:
    """With wall clocks 5 ms apart, no broadcast on one host ends before the other host's send begins."""
    path, ms = tmp_path / "run.pftrace", 1_000_000
    made = simulate(ranks=2, layers=8, k=0, steps=4, compute=lambda _r, _s, _p: ms, latency=100_000)
    hosts = Hosts(made, (0, 1), (HostClock(), HostClock(HOUR_NS, wall_ahead_ns=5 * ms)))
    with path.open("wb") as out:
        writer = PerfettoWriter(out, map(hosts.identity, range(2)), hosts.origins(ms))
        writer.write(hosts.fed().take_steps())
    slices = read(path)
    sends = {flow: each for each in slices if each.category == "send" for flow in each.flows_out}
    broadcasts = [each for each in slices if each.category == "broadcast"]
    bound = max(each.arguments.get("clock_bound_ns", 0) for each in slices if each.category == "step")
    assert len(broadcasts) == 32
    assert 0 < bound < ms
    assert all(each.end_ns >= sends[each.flows_in[0]].begin_ns - bound for each in broadcasts)


def test_a_pull_series_has_copies_and_no_sends(tmp_path: Path) -> None:
    """Copies are slices of windows, with the owner as an argument; flows lead only from a copy to its wait."""
    schedule = replicas(layers=6)
    made = ledger(schedule)
    for rank, records in enumerate(schedule.records):
        made.add(key(rank), records)
    path = tmp_path / "pull.pftrace"
    with path.open("wb") as out:
        writer = PerfettoWriter(out, map(schedule.identity, range(4)), origins(*range(4), run_id=RUN))
        writer.write(made.take_steps())
    slices = read(path)
    copies = [each for each in slices if each.category == "copy"]
    assert len(copies) == len(schedule.copies) == writer.statistics.broadcasts
    assert not [each for each in slices if each.category in {"broadcast", "send"}]
    assert sum(each.arguments["transfer_ns"] for each in copies) == sum(
        c.ready_ns - c.start_ns for c in schedule.copies
    )
    assert {each.arguments["source_rank"] for each in copies} == {0, 1, 2, 3}
    assert all(len(each.flows_out) == 1 and not each.flows_in for each in copies)
