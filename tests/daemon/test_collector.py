"""The exposition has exactly the documented names and labels in both formats, and its sums hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from swtrace.trace.identity import UntracedRank, Workload
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import Clock, Untimed
from tests.support.daemon_threads import serving
from tests.support.recorded_run import (
    AS_PLANNED,
    LAYER_BYTES,
    STALL_NS,
    TRANSFER_NS,
    PullRun,
    RecordedRun,
    identity,
    series_info,
)
from tests.support.scrapes import NAMES, OPENMETRICS, parse_openmetrics, scrape, value


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """Two ranks with a plan, one with a refusal."""
    run = RecordedRun(tmp_path, planned=AS_PLANNED)
    run.recorders[0].add_series(
        series_info(0, name="mlp.down_proj", refused="different shapes", window_count=0, owned_layers=0)
    )
    yield run
    run.close()


@pytest.fixture
def client(run: RecordedRun, client: httpx.Client) -> httpx.Client:
    """A client of a daemon that has been there for all of the run's ten steps."""
    run.write(10)
    return client


def test_names_types_and_labels_are_the_documented_ones(run: RecordedRun, client: httpx.Client) -> None:
    """Every documented metric is exposed with exactly its type and labels, and no other metric is."""
    run.recorders[1].add_series(series_info(1, name="mlp.up_proj", untraced=(UntracedRank(0, "no room"),)))
    families = scrape(client)
    assert set(families) == set(NAMES)
    for name, (kind, labels) in NAMES.items():
        assert families[name].type == kind, name
        assert families[name].documentation, name
        several = "source" in labels or name.startswith("swtrace_clock_")  # none here
        assert bool(families[name].samples) != several, name
        for sample in families[name].samples:
            missing = labels - set(sample.labels)
            assert set(sample.labels) - {"le"} == labels - missing, sample
            assert not missing or name == "swtrace_finding", sample  # not every finding is about a rank or a series


def test_documentation_lists_every_metric_and_no_other() -> None:
    """docs/metrics.md and the exposition name the same metrics."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(swtrace_\w+)", text, re.MULTILINE)) == set(NAMES)


def test_openmetrics_when_asked(client: httpx.Client) -> None:
    """A scraper that accepts OpenMetrics gets it, with the same samples as the text format."""
    text = client.get("/metrics")
    openmetrics = client.get("/metrics", headers={"accept": OPENMETRICS})
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    samples = {
        kind: {
            (s.name, *sorted(s.labels.items()), s.value)
            for family in families
            for s in family.samples
            if s.name != "swtrace_daemon_last_poll_timestamp_seconds"  # of the scrape itself
        }
        for kind, families in (
            ("text", list(parse_text(text.text))),
            ("openmetrics", parse_openmetrics(openmetrics.text)),
        )
    }
    assert samples["text"] == samples["openmetrics"]


def test_the_plan_stands_beside_what_is_measured(run: RecordedRun, client: httpx.Client) -> None:
    """Each rank has the plan's figures with their ranges, and its own; a plan for other settings has no figures."""
    other = replace(AS_PLANNED, differs="prefetch step 1, not 2")
    run.recorders[0].add_series(series_info(0, name="mlp.up_proj", planned=other))
    families = scrape(client)
    step, stall = families["swtrace_planned_step_seconds"], families["swtrace_planned_stall_ratio"]
    figures = {
        sample.labels["kind"]: (sample.value, ratio.value)
        for sample, ratio in zip(step.samples, stall.samples, strict=True)
        if sample.labels["rank"] == "1"
    }
    measured = run.step_ns / 1e9, STALL_NS / run.step_ns
    assert figures == {
        "predicted": (0.0061, 0.04),
        "low": (0.0059, 0.03),
        "high": (0.0062, 0.06),
        "measured": pytest.approx(measured),
    }
    assert {sample.labels["series"] for sample in step.samples} == {"self_attn.o_proj"}


@pytest.mark.prometheus
def test_promtool_accepts_the_exposition(client: httpx.Client) -> None:
    """Prometheus' own linter accepts the exposition."""
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: install Prometheus (Debian: apt-get install prometheus)"
    text = client.get("/metrics").content
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_waits_and_bytes_count_every_layer_of_every_step(client: httpx.Client) -> None:
    """Each rank has one wait per layer and step, and one broadcast per layer and step except the prefilled ones."""
    families = scrape(client)
    for rank in ("0", "1"):
        outcomes = {
            sample.labels["outcome"]: sample.value
            for sample in families["swtrace_waits_total"].samples
            if sample.labels["rank"] == rank
        }
        assert sum(outcomes.values()) == 5 * 10
        assert set(outcomes) == {"on_time", "stalled", "own", "prefilled", "untimed"}
        assert outcomes["untimed"] == 0
        assert value(families, "swtrace_steps_total", rank=rank) == 10
        assert value(families, "swtrace_transfer_bytes_total", rank=rank) == (5 * 10 - 1) * LAYER_BYTES
        assert value(families, "swtrace_step_duration_seconds_count", rank=rank, phase="decode") == 10
    assert value(families, "swtrace_waits_total", rank="1", outcome="stalled") == 10
    assert value(families, "swtrace_waits_total", rank="0", outcome="stalled") == 0


def test_untimed_steps_are_in_every_count_and_in_no_duration(tmp_path: Path) -> None:
    """Untimed steps of a device count as steps, waits and bytes, by reason, and are in no histogram."""
    run = RecordedRun(tmp_path, clock=Clock.DEVICE)
    with serving(tmp_path) as client:
        for number in range(12):
            run.write() if number % 4 == 0 else run.write_untimed(Untimed.BUSY if number == 1 else Untimed.SAMPLED)
        families = scrape(client)
    run.close()
    for rank in ("0", "1"):
        assert value(families, "swtrace_steps_total", rank=rank) == 12
        reasons = {
            sample.labels["reason"]: sample.value
            for sample in families["swtrace_untimed_steps_total"].samples
            if sample.labels["rank"] == rank
        }
        assert reasons == {"sampled": 8, "busy": 1, "no_anchor": 0, "replay": 0, "unfinished": 0}
        outcomes = {
            sample.labels["outcome"]: sample.value
            for sample in families["swtrace_waits_total"].samples
            if sample.labels["rank"] == rank
        }
        assert outcomes["untimed"] == 9 * 5
        assert sum(outcomes.values()) == 12 * 5
        assert value(families, "swtrace_transfer_bytes_total", rank=rank) == (12 * 5 - 1) * LAYER_BYTES
        assert value(families, "swtrace_step_duration_seconds_count", rank=rank, phase="decode") == 3
        received = outcomes["on_time"] + outcomes["stalled"]
        assert value(families, "swtrace_wait_stall_seconds_count", rank=rank) == received
        assert value(families, "swtrace_series_info", rank=rank, clock="device") == 1
    stall = value(families, "swtrace_wait_stall_seconds_sum", rank="1")
    assert stall == pytest.approx(3 * STALL_NS / 1e9)
    assert value(families, "swtrace_stall_seconds", rank="1") == STALL_NS / 1e9


def test_causes_sum_to_the_stall(client: httpx.Client) -> None:
    """The causes of a rank's stall sum to its stall, which is the time that its waits were blocked."""
    families = scrape(client)
    for rank, stall in (("0", 0.0), ("1", 10 * STALL_NS / 1e9)):
        causes = [s.value for s in families["swtrace_stall_cause_seconds_total"].samples if s.labels["rank"] == rank]
        assert len(causes) == 5
        assert sum(causes) == pytest.approx(stall)
        assert value(families, "swtrace_wait_stall_seconds_sum", rank=rank) == pytest.approx(stall)
    assert value(families, "swtrace_stall_seconds", rank="1") == STALL_NS / 1e9


def test_histograms_are_cumulative_and_in_seconds(client: httpx.Client) -> None:
    """Buckets increase up to the count, which is the number of receivers' waits."""
    families = scrape(client)
    family = families["swtrace_wait_stall_seconds"]
    buckets = [s for s in family.samples if s.name.endswith("_bucket") and s.labels["rank"] == "1"]
    bounds = [float(s.labels["le"]) for s in buckets]
    counts = [s.value for s in buckets]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    assert counts == sorted(counts)
    receivers = 3 * 10 - 1  # layers 0, 2, 4; the first step's layer 0 was prefilled
    assert counts[-1] == value(families, "swtrace_wait_stall_seconds_count", rank="1") == receivers
    below, above = (
        max(count for bound, count in zip(bounds, counts, strict=True) if bound < STALL_NS / 1e9),
        min(count for bound, count in zip(bounds, counts, strict=True) if bound >= STALL_NS / 1e9),
    )
    assert (below, above) == (receivers - 10, receivers)


def test_occupancy_sums_to_the_windows(client: httpx.Client) -> None:
    """The windows of a rank in all states add up to its windows."""
    families = scrape(client)
    for rank in ("0", "1"):
        states = {
            s.labels["state"]: s.value for s in families["swtrace_window_occupancy"].samples if s.labels["rank"] == rank
        }
        assert states == {"free": 1, "inflight": 0, "ready": 0, "in_use": 1}


def test_occupancy_follows_the_windows(tmp_path: Path) -> None:
    """A window is in flight from its issue, ready from its completion, in use from the end of the wait."""
    run = RecordedRun(tmp_path)
    states = []
    with serving(tmp_path) as client:
        token = run.series[1].window_issued(0, 0, 2, run.base_ns)
        states.append(occupied(client))
        run.series[1].window_ready(0, token, run.base_ns + 1)
        states.append(occupied(client))
        run.series[1].window_in_use(0, token, run.base_ns + 2)
        states.append(occupied(client))
        run.series[1].window_freed(0)
        states.append(occupied(client))
    assert states == ["inflight", "ready", "in_use", "free"]
    run.close()


def occupied(client: httpx.Client) -> str:
    """Return the state of rank 1's first window, by what is not free or, where all are, free."""
    samples = scrape(client)["swtrace_window_occupancy"].samples
    states = {s.labels["state"]: s.value for s in samples if s.labels["rank"] == "1"}
    assert sum(states.values()) == 2
    return next((state for state, windows in states.items() if windows and state != "free"), "free")


def test_bytes_held_and_replicated(run: RecordedRun, client: httpx.Client) -> None:
    """Held bytes are split into owned layers, windows and kept layers, beside the bytes that replication would take."""
    run.series[0].step(step=run.steps, tokens=64, requests=4, waits=5, kept_layers=2, untimed=Untimed.SAMPLED)
    families = scrape(client)
    kinds = ("owned", "windows", "kept")
    held = {kind: value(families, "swtrace_series_bytes", rank="0", kind=kind) for kind in kinds}
    assert held == {"owned": 3 * LAYER_BYTES, "windows": 2 * LAYER_BYTES, "kept": 2 * LAYER_BYTES}
    assert value(families, "swtrace_series_bytes", rank="0", kind="replicated") == 5 * LAYER_BYTES


def test_effective_prefetch_step_equals_the_configured_one(client: httpx.Client) -> None:
    """In a working run, the effective prefetch step is the configured one."""
    families = scrape(client)
    for kind in ("configured", "effective"):
        assert value(families, "swtrace_prefetch_step", rank="1", kind=kind) == 1


def test_a_rank_info_names_process_and_workload(tmp_path: Path) -> None:
    """Each rank has one sample with its run, model, pid, pod and job; labels that it does not know are empty."""
    for rank in range(2):
        about = replace(identity("run-1", rank), workload=Workload(k8s_pod_name=f"vllm-{rank}", slurm_job_id="4711"))
        Recorder.create(tmp_path, about).close()
    with serving(tmp_path) as client:
        samples = scrape(client)["swtrace_rank_info"].samples
    known = [{name: text for name, text in sample.labels.items() if text} for sample in samples]
    assert known == [
        {
            "rank": str(rank),
            "run": "run-1",
            "host_name": "host-a",
            "model": "tiny",
            "pid": str(os.getpid()),
            "k8s_pod_name": f"vllm-{rank}",
            "slurm_job_id": "4711",
        }
        for rank in range(2)
    ]
    assert {sample.value for sample in samples} == {1}


def test_refusal_is_an_info_with_its_reason(client: httpx.Client) -> None:
    """A requested linear that is not shared is exposed with the reason, and has no other metric."""
    families = scrape(client)
    (sample,) = families["swtrace_series_refused_info"].samples
    assert sample.labels == {"rank": "0", "series": "mlp.down_proj", "reason": "different shapes"}
    others = [s for f in families.values() if f is not families["swtrace_series_refused_info"] for s in f.samples]
    assert all(s.labels.get("series") != "mlp.down_proj" for s in others)


def test_last_record_is_told_in_unix_time(run: RecordedRun, client: httpx.Client) -> None:
    """The time of the last record is the end of the last step, converted with the ring's anchor."""
    families = scrape(client)
    anchor = client.get("/api/v1/ranks").json()["ranks"][0]["anchor"]
    end = run.begin_ns(9) + run.step_ns + anchor["realtime_ns"] - anchor["monotonic_ns"]
    assert value(families, "swtrace_rank_last_record_timestamp_seconds", rank="0") == pytest.approx(end / 1e9, abs=1e-5)


def test_scrape_sees_everything_committed_before_it(tmp_path: Path) -> None:
    """A scrape includes all records committed before it, and written = delivered + lost + pending in each."""
    run = RecordedRun(tmp_path)
    with serving(tmp_path) as client:
        for _ in range(5):
            run.write(7)
            families = scrape(client)
            assert value(families, "swtrace_steps_total", rank="0") == run.steps
            assert value(families, "swtrace_ring_records_total", rank="0") == run.written
            assert value(families, "swtrace_ring_pending_records", rank="0") == 0
    run.close()


def test_lost_records_are_counted(tmp_path: Path) -> None:
    """A rank that overwrites records before the daemon reads them has lost records, and the counts add up."""
    with serving(tmp_path) as client:
        run = RecordedRun(tmp_path, records=64)
        run.write(100)
        families = scrape(client)
        ring = client.get("/api/v1/ranks").json()["ranks"][0]["ring"]
    lost = lost_by_reason(families)
    assert lost["lapped"] > 0
    assert value(families, "swtrace_ring_records_total", rank="0") == run.written
    assert run.written == ring["delivered"] + ring["skipped"] + sum(lost.values()) + ring["pending"]
    run.close()


def test_history_is_not_counted_but_known(tmp_path: Path) -> None:
    """What an older ring held is in no counter and not lost; gauges and recent figures of the API have it."""
    run = RecordedRun(tmp_path, records=64)
    run.write(100)
    with serving(tmp_path) as client:
        families = scrape(client)
        rank = client.get("/api/v1/ranks").json()["ranks"][0]
        (series,) = client.get("/api/v1/series").json()["series"]
    ring = rank["ring"]
    assert value(families, "swtrace_ring_records_total", rank="0") == run.written
    assert run.written == ring["delivered"] + ring["skipped"] == 64 + ring["skipped"]
    assert set(lost_by_reason(families).values()) == {0}
    counters = {
        name for name, (kind, labels) in NAMES.items() if kind in {"counter", "histogram"} and "series" in labels
    }
    assert {sample.value for name in counters for sample in families[name].samples} == {0}
    assert value(families, "swtrace_stall_seconds", rank="1") == STALL_NS / 1e9
    assert value(families, "swtrace_prefetch_step", rank="1", kind="effective") == 1
    assert (rank["records"], series["steps"], series["ranks"][0]["recent"]["steps"]) == (64, 11, 10)
    run.close()


def lost_by_reason(families: dict[str, Metric]) -> dict[str, float]:
    """Return the records that rank 0 lost."""
    samples = families["swtrace_ring_lost_records_total"].samples
    return {sample.labels["reason"]: sample.value for sample in samples if sample.labels["rank"] == "0"}


def test_rank_that_ended_is_down_and_then_gone(tmp_path: Path) -> None:
    """A rank that ended is exposed as down, with its totals, and disappears later."""
    run = RecordedRun(tmp_path)
    with serving(tmp_path) as client:
        run.write(3)
        assert value(scrape(client), "swtrace_rank_up", rank="0") == 1
        run.close()
        families = scrape(client)
        assert value(families, "swtrace_rank_up", rank="0") == 0
        assert value(families, "swtrace_steps_total", rank="0") == 3
    with serving(tmp_path, down_shown_s=0) as client:
        scrape(client)
        families = scrape(client)
        assert families["swtrace_rank_up"].samples == []
        assert families["swtrace_steps_total"].samples == []
        assert client.get("/api/v1/snapshot").json()["ranks"] == []


def test_empty_folder_still_has_the_daemons_own_metrics(tmp_path: Path) -> None:
    """Without ranks, every metric is declared, and those of the daemon have values."""
    with serving(tmp_path / "not-there-yet") as client:
        families = scrape(client)
    assert set(families) == set(NAMES)
    filled = {name for name, family in families.items() if family.samples}
    assert filled == {name for name, (_kind, labels) in NAMES.items() if not labels & {"rank", "source"}}


def test_an_untraced_rank_is_told_by_its_peers_once(tmp_path: Path) -> None:
    """If two ranks report a third as untraced, one sample has its number and the reason, and so has one finding."""
    untraced = (UntracedRank(2, "cannot make a ring: No space left on device"),)
    recorders = [Recorder.create(tmp_path, identity("run-1", rank)) for rank in range(2)]
    for rank, recorder in enumerate(recorders):
        recorder.add_series(series_info(rank, 3, untraced=untraced))
    with serving(tmp_path) as client:
        families = scrape(client)
        (described, _) = client.get("/api/v1/ranks").json()["ranks"]
    (sample,) = families["swtrace_rank_untraced_info"].samples
    reason = "cannot make a ring: No space left on device"
    assert sample.labels == {"rank": "2", "series": "self_attn.o_proj", "reason": reason}
    assert sample.value == 1
    (finding,) = (s for s in families["swtrace_finding"].samples if s.labels["kind"] == "untraced")
    assert finding.labels == {"rank": "2", "series": "self_attn.o_proj", "kind": "untraced", "severity": "warning"}
    others = {s.labels.get("rank") for f in families.values() for s in f.samples if s not in (sample, finding)}
    assert others - {None} == {"0", "1"}
    assert described["series"][0]["untraced"] == [{"rank": 2, "reason": reason}]
    for recorder in recorders:
        recorder.close()


def test_odd_text_in_a_ring_is_escaped(tmp_path: Path) -> None:
    """Quotes and backslashes in names reach label values unchanged."""
    odd = 'a"b\\c'
    recorder = Recorder.create(tmp_path, identity("run-1", 0))
    recorder.add_series(series_info(0, name=odd))
    with serving(tmp_path) as client:
        (sample,) = scrape(client)["swtrace_series_info"].samples
        openmetrics = client.get("/metrics", headers={"accept": OPENMETRICS}).text
    assert sample.labels["series"] == odd
    assert any(s.labels.get("series") == odd for family in parse_openmetrics(openmetrics) for s in family.samples)
    recorder.close()


@pytest.mark.parametrize("text", ["text/plain", OPENMETRICS])
def test_a_rank_on_another_host_has_the_offset_of_its_clock(tmp_path: Path, text: str) -> None:
    """With ranks on two hosts, the second one's clock has offset, bound, drift, restarts; the first one's has none."""
    run = RecordedRun(tmp_path, hosts=("host-a", "host-b"), ahead_ns=3600 * 10**9)
    with serving(tmp_path) as client:
        run.write(10)
        exposed = client.get("/metrics", headers={"accept": text}).text
        families = {
            sample.name: sample
            for family in (parse_openmetrics if text == OPENMETRICS else parse_text)(exposed)
            for sample in family.samples
            if sample.name.startswith("swtrace_clock_")
        }
    run.close()
    assert set(families) == {name for name in NAMES if name.startswith("swtrace_clock_")}
    assert {tuple(sample.labels.values()) for sample in families.values()} == {("1", "self_attn.o_proj")}
    bound = families["swtrace_clock_offset_bound_seconds"].value
    assert 0 < bound < 1.01 * TRANSFER_NS / 1e9
    assert families["swtrace_clock_offset_seconds"].value == pytest.approx(-3600, abs=bound)
    assert families["swtrace_clock_restarts_total"].value == 0
    assert abs(families["swtrace_clock_drift_ratio"].value) < 1e-3


def test_each_rank_of_a_pull_series_counts_its_own_steps(tmp_path: Path) -> None:
    """Ranks that pull count their own steps and copies; an owner sends nothing, and no rank is compared."""
    run = PullRun(tmp_path)
    with serving(tmp_path) as client:
        run.write_each(10, 3)
        families = scrape(client)
    run.close()
    for rank, steps, copies in (("0", 10, 2 * 10), ("1", 3, 3 * 3 - 1)):
        assert value(families, "swtrace_steps_total", rank=rank) == steps
        assert value(families, "swtrace_transfer_bytes_total", rank=rank) == copies * LAYER_BYTES
        assert value(families, "swtrace_transfer_duration_seconds_count", rank=rank, role="receiver") == copies
        stall = sum(
            sample.value
            for sample in families["swtrace_stall_cause_seconds_total"].samples
            if sample.labels["rank"] == rank
        )
        assert stall == pytest.approx(value(families, "swtrace_wait_stall_seconds_sum", rank=rank))
    durations = families["swtrace_transfer_duration_seconds"].samples
    assert {(sample.labels["kind"], sample.labels["role"]) for sample in durations} == {("pull", "receiver")}
    assert {sample.labels["kind"] for sample in families["swtrace_transfer_bytes_total"].samples} == {"pull"}
    causes = {
        sample.labels["cause"] for sample in families["swtrace_stall_cause_seconds_total"].samples if sample.value
    }
    assert causes == {"transfer"}
    assert not families["swtrace_straggler_excess_ratio"].samples
    about = {(sample.labels["transport"], sample.labels["kind"]) for sample in families["swtrace_series_info"].samples}
    assert about == {("pull", "pull")}
