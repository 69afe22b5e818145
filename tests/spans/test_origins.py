"""The resource of a span names its rank."""

from __future__ import annotations

import pytest

from swtrace.spans.origins import rank_resource
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
