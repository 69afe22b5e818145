"""Exemplars: the slowest waits of the stall histogram carry the trace of their step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.samples import Sample

from swtrace.daemon.exemplars import KEPT_NS, SlowestWaits
from swtrace.spans.delivery import SpanExport
from swtrace.spans.traces import Sampling, trace_id
from tests.support.daemon_threads import serving
from tests.support.host_clocks import HOUR_NS, UNIX_NS, HostClock, Hosts, true_steps
from tests.support.recorded_run import STALL_NS, STALLED_POSITION, RecordedRun
from tests.support.schedules import key, simulate

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@contextmanager
def exporting(directory: Path, share: float = 1.0) -> Iterator[httpx.Client]:
    """Serve a folder of rings, exporting the spans of this share of all steps."""
    spans = SpanExport([InMemorySpanExporter()], Sampling(share=share))
    with serving(directory, spans=spans) as client:
        yield client
    spans.close(5)


def exemplars(client: httpx.Client) -> list[Sample]:
    """Return all samples of the exposition with an exemplar."""
    text = client.get("/metrics", headers={"accept": OPENMETRICS}).text
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    return [sample for family in families for sample in family.samples if sample.exemplar]


def test_slowest_wait_carries_the_trace_of_its_step(tmp_path: Path) -> None:
    """The exemplar is the stalled wait, in its bucket, with its stall, layer, end, and the trace id of its step."""
    run = RecordedRun(tmp_path)
    with exporting(tmp_path) as client:
        run.write()
        (sample,) = exemplars(client)
        anchor = client.get("/api/v1/ranks").json()["ranks"][0]["anchor"]
    run.close()
    assert sample.name == "swtrace_wait_stall_seconds_bucket"
    assert (sample.labels["rank"], sample.labels["le"]) == ("1", "0.0005")
    assert sample.exemplar is not None
    assert sample.exemplar.labels == {"trace_id": f"{trace_id('run-1', 0):032x}", "layer": str(STALLED_POSITION)}
    assert sample.exemplar.value == STALL_NS / 1e9
    began = (run.begin_ns(0) + anchor["realtime_ns"] - anchor["monotonic_ns"]) / 1e9
    assert sample.exemplar.timestamp is not None
    assert began < float(sample.exemplar.timestamp) < began + run.step_ns / 1e9


def test_equally_slow_wait_replaces_only_an_old_one(tmp_path: Path) -> None:
    """A bucket keeps its slowest wait for about a minute, so that several scrapes see the same one."""
    run = RecordedRun(tmp_path)
    with exporting(tmp_path) as client:
        run.write(10)
        (first,) = exemplars(client)
        run.base_ns += KEPT_NS
        run.write(10)
        (second,) = exemplars(client)
    run.close()
    assert first.exemplar is not None
    assert second.exemplar is not None
    assert first.exemplar.labels["trace_id"] == f"{trace_id('run-1', 0):032x}"
    assert second.exemplar.labels["trace_id"] == f"{trace_id('run-1', 10):032x}"


def test_steps_without_spans_have_no_exemplar(tmp_path: Path) -> None:
    """No exemplar names a trace that is not exported, because of a missing collector or of sampling."""
    run = RecordedRun(tmp_path)
    with serving(tmp_path) as client:
        run.write(10)
        assert exemplars(client) == []
    with exporting(tmp_path, share=0) as client:
        run.write(10)
        assert exemplars(client) == []
    run.close()


def test_text_format_carries_none(tmp_path: Path) -> None:
    """The older text format, which cannot carry exemplars, is unchanged."""
    run = RecordedRun(tmp_path)
    with exporting(tmp_path) as client:
        run.write()
        assert "trace_id" not in client.get("/metrics").text
    run.close()


def test_exemplars_of_several_hosts_are_on_the_clock_of_their_spans() -> None:
    """A wait on a host whose wall clock is wrong ends within its step by the wall clock of the first rank's host."""
    made = simulate(ranks=2, layers=6, k=0, steps=2, compute=lambda _r, _s, _p: 50_000, latency=100_000)
    hosts = Hosts(made, (0, 1), (HostClock(), HostClock(HOUR_NS, wall_ahead_ns=HOUR_NS)))
    slowest, step, truth = SlowestWaits(), hosts.fed().take_steps()[1], true_steps(made)[1]
    slowest.add(step, hosts.origins(1))
    ((wait,),) = (buckets.values() for buckets in slowest.of([key(1)]).values())
    begin, end = UNIX_NS + int(truth.begin_ns[1]), UNIX_NS + int(truth.end_ns[1])
    bound = int(step.clock_bound_ns[1])
    assert begin - bound < wait.unix_ns < end + bound
