"""The resource of a span names its rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.spans.origins import rank_resource
from swtrace.trace.identity import Workload
from tests.support.recorded_run import identity


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
