"""The resource of a span names its rank, and instants of several hosts are shown on one clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.spans.origins import rank_resource, step_origins
from swtrace.trace.identity import Workload
from tests.support.host_clocks import HOUR_NS, UNIX_NS, HostClock, Hosts, true_steps
from tests.support.recorded_run import identity
from tests.support.schedules import key, simulate

MS = 1_000_000


def test_resource_names_the_rank_and_yields_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's resource describes its process; service and resource in the environment override it."""
    known = dict(rank_resource(identity("run-1", 3)).attributes)
    assert known["service.name"] == "swtrace"
    assert known["service.instance.id"] == "run-1/3"
    assert known["host.name"] == "host-a"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "llama")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,host.name=other")
    known = dict(rank_resource(identity("run-1", 3)).attributes)
    assert known["service.name"] == "llama"
    assert known["deployment.environment.name"] == "test"
    assert known["host.name"] == "other"


def test_model_and_workload_are_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's model, pod and node win over those of the daemon's environment; unknown ones are absent."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=daemon,k8s.cluster.name=blue")
    rank = replace(identity("run-1", 3), workload=Workload(k8s_pod_name="vllm-0", slurm_job_id="4711"))
    known = dict(rank_resource(rank).attributes)
    assert known["swtrace.model"] == "tiny"
    assert (known["k8s.pod.name"], known["slurm.job.id"], known["k8s.cluster.name"]) == ("vllm-0", "4711", "blue")
    assert "k8s.node.name" not in known


HERE, THERE = HostClock(), HostClock(HOUR_NS, wall_ahead_ns=5 * MS)


def several_hosts(clocks: tuple[HostClock, ...], *, host: tuple[int, ...] = (0, 0, 1), layers: int = 6) -> Hosts:
    """Return steps of three ranks on several hosts."""
    made = simulate(ranks=3, layers=layers, k=0, steps=3, compute=lambda _r, _s, _p: MS, latency=100_000)
    return Hosts(made, host, clocks)


@pytest.mark.parametrize("clocks", [(HERE, THERE), (THERE, HERE)])
def test_compared_ranks_are_shown_by_the_first_ranks_clock(clocks: tuple[HostClock, HostClock]) -> None:
    """Instants of all hosts become UNIX time by the wall clock of the first rank's host, off by their bound at most."""
    hosts = several_hosts(clocks)
    for step, truth in zip(hosts.fed().take_steps(), true_steps(hosts.schedule), strict=True):
        assert step.comparable
        for rank, origin in enumerate(step_origins(step, hosts.origins(MS))):
            assert origin is not None
            shown = origin.monotonic_offset_ns + step.begin_ns[rank]
            wrong = shown - (UNIX_NS + truth.begin_ns[rank] + clocks[0].wall_ahead_ns)
            assert abs(wrong) <= step.clock_bound_ns[rank]


def test_without_the_first_ranks_origin_the_next_one_counts() -> None:
    """If a rank's ring has no anchor, the others are shown by the wall clock of the next rank's host."""
    hosts = several_hosts((HERE, THERE))
    origins = hosts.origins(MS)
    del origins[key(0)], origins[key(1)]
    step = hosts.fed().take_steps()[-1]
    first, second, third = step_origins(step, origins)
    assert first is None
    assert second is None
    assert third is not None
    truth = true_steps(hosts.schedule)[-1]
    assert third.monotonic_offset_ns + step.begin_ns[2] == UNIX_NS + truth.begin_ns[2] + THERE.wall_ahead_ns


def test_ranks_that_are_not_compared_keep_their_hosts_clocks() -> None:
    """If the clock of one host is unknown, as its rank is never a source, each host is shown by its own wall clock."""
    hosts = several_hosts((HERE, HostClock(7 * HOUR_NS, wall_ahead_ns=-MS), THERE), host=(0, 1, 2), layers=2)
    for step, truth in zip(hosts.fed().take_steps(), true_steps(hosts.schedule), strict=True):
        assert not step.comparable
        assert step.clock_shift_ns[1]
        for rank, origin in enumerate(step_origins(step, hosts.origins(MS))):
            assert origin is not None
            shown = origin.monotonic_offset_ns + step.begin_ns[rank]
            assert shown == UNIX_NS + truth.begin_ns[rank] + hosts.clocks[hosts.host[rank]].wall_ahead_ns
