"""A daemon that is restarted over rings that have wrapped changes no rate, loses no record and repeats no span."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.support.daemon_command import DaemonCommand, daemon
from tests.support.patience import eventually, patience
from tests.support.prometheus_process import prometheus
from tests.support.recorded_run import SPANS_PER_STEP, RecordedRun
from tests.support.scrapes import scrape
from tests.support.span_receiver import SpanReceiver, free_port

RING_RECORDS = 64
"""Ten steps and a part of one."""
RATE = 5
"""Steps per second, at most."""


def counters(command: DaemonCommand) -> dict[tuple[str, ...], float]:
    """Return every sample of a counter or a histogram about ranks, by name and labels."""
    families = scrape(command.client)
    return {
        (sample.name, *sorted(map("=".join, sample.labels.items()))): sample.value
        for family in families.values()
        if family.type in {"counter", "histogram"}
        for sample in family.samples
        if "rank" in sample.labels
    }


def test_counts_before_and_after_a_restart_add_up_to_those_of_a_daemon_that_stayed(tmp_path: Path) -> None:
    """Everything is counted once, by the one daemon or the other, and no record is lost."""
    run = RecordedRun(tmp_path, records=RING_RECORDS)
    with daemon(tmp_path) as stays:
        with daemon(tmp_path) as first:
            for _ in range(6):
                run.write(5)
                counters(stays)
                before = counters(first)
            first.end()
        with daemon(tmp_path) as second:
            begun = counters(second)
            for _ in range(3):
                run.write(5)
                counters(stays)
                after = counters(second)
        expected = counters(stays)
    run.close()
    (ring_records,) = {key for key in begun if key[:2] == ("swtrace_ring_records_total", "rank=0")}
    assert (begun.pop(ring_records), after[ring_records]) == (30 * 6, run.written)
    assert {key for key, number in begun.items() if number} == {("swtrace_ring_records_total", "rank=1")}
    counted = {key: before.get(key, 0) + number for key, number in after.items() if key[0] != ring_records[0]}
    assert counted == pytest.approx({key: number for key, number in expected.items() if key[0] != ring_records[0]})
    assert counted["swtrace_steps_total", "rank=1", "series=self_attn.o_proj"] == run.steps


def test_a_span_is_exported_once_though_the_daemon_is_restarted(tmp_path: Path, receiver: SpanReceiver) -> None:
    """Each step is exported by one daemon, also the one under way, which the first daemon exports at its end."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "1"}
    run = RecordedRun(tmp_path, records=RING_RECORDS)
    with daemon(tmp_path, **settings) as first:
        run.write(4)
        run.write_rank(0, run.steps)
        run.write_rank(1, run.steps, ended=False)
        first.end()
    exported = receiver.wait_for(5 * SPANS_PER_STEP - 3)  # two were prefilled, and one step has not ended
    with daemon(tmp_path, **settings) as second:
        run.steps += 1
        run.write(3)
        receiver.wait_for(len(exported) + 3 * SPANS_PER_STEP)
        assert second.metric("swtrace_spans_exported_total") == 3 * SPANS_PER_STEP
        second.end()
    run.close()
    spans = receiver.spans()
    assert {span.attributes["swtrace.step"] for span in spans} == set(range(8))
    assert set(Counter((span.trace_id, span.span_id) for span in spans).values()) == {1}


@pytest.mark.prometheus
def test_prometheus_sees_no_rate_that_was_not(tmp_path: Path) -> None:
    """Over the restart of a daemon, no rate exceeds that of the ranks, and no record counts as lost."""
    run = RecordedRun(tmp_path / "rings")
    run.write(1000)
    stop = threading.Event()
    writer = threading.Thread(target=_write_at_rate, args=(run, stop), daemon=True)
    writer.start()
    port = free_port()
    with prometheus(tmp_path, [f"127.0.0.1:{port}"], scrape_s=1, evaluate_s=1) as server:

        def scraped(number: int) -> bool:
            samples = server.query("count_over_time(swtrace_steps_total[5m])")
            return len(samples) == run.ranks and all(sample.value >= number for sample in samples)

        for lives in (1, 2):
            with daemon(tmp_path / "rings", port) as command:
                eventually(partial(scraped, 6 * lives), "Prometheus to scrape the daemon")
                command.end()
        stop.set()
        writer.join(patience())

        def highest(rate: str) -> float:
            """Return the highest value that a rate, over an interval longer than the restart, had on a rank."""
            samples = server.query(f"max_over_time({rate}[5m:1s])")
            assert len(samples) == run.ranks
            return max(sample.value for sample in samples)

        assert 0 < highest("rate(swtrace_steps_total[30s])") < 2 * RATE
        assert 0 < highest("rate(swtrace_ring_records_total[30s])") < 2 * RATE * 6
        assert highest("sum without (reason) (rate(swtrace_ring_lost_records_total[30s]))") == 0
    run.close()


def _write_at_rate(run: RecordedRun, stop: threading.Event) -> None:
    while not stop.wait(1 / RATE):
        run.write()
