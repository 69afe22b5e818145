"""``swtrace daemon`` as users run it: real processes, a real collector, signals and restarts."""

from __future__ import annotations

import json
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swtrace.spans.step_spans import BROADCAST, STEP, WAIT
from swtrace.spans.traces import trace_id
from tests.support.daemon_command import ROOT, daemon, environment
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.span_receiver import ReceivedSpan, SpanReceiver, collector, free_port

SPANS_PER_STEP = 22
"""Two ranks: one step, five broadcasts and five waits each."""
ATTRIBUTES = {
    "run_id",
    "rank",
    "series",
    "layer",
    "step",
    "source_rank",
    "window",
    "bytes",
    "clock",
    "stall_ns",
    "slack_ns",
    "transfer_ns",
}

RANK = """
import sys, time
from pathlib import Path
from tests.support.recorded_run import RecordedRun
run = RecordedRun(Path(sys.argv[1]), run_id=sys.argv[2], ranks=2, records=1 << 17)
for _ in range(int(sys.argv[3])):
    run.write()
print(run.written, flush=True)
while True:
    time.sleep(0.01)
    run.write()
"""


@pytest.fixture
def receiver() -> Iterator[SpanReceiver]:
    """A receiver of OTLP over HTTP."""
    receiver = SpanReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """A run of two ranks without records yet."""
    run = RecordedRun(tmp_path / "rings")
    yield run
    run.close()


@contextmanager
def ranks_process(directory: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes two ranks. It has written ``steps`` and continues until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(directory), "run-1", str(steps)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_real_collector_gets_a_step_of_all_ranks_as_one_trace(
    tmp_path: Path, run: RecordedRun, receiver: SpanReceiver, protocol: str
) -> None:
    """Through a real collector, by either protocol, a step's spans of all ranks arrive in one trace and nest."""
    run.write(3)
    with collector(tmp_path, receiver) as (grpc, http):
        endpoint = grpc if protocol == "grpc" else http
        with daemon(
            run.directory, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol
        ) as command:
            sent = 3 * SPANS_PER_STEP - 2  # layer 0 of the first step was prefilled
            spans = receiver.wait_for(sent)
            # The receiver has them before the daemon gets the acknowledgement.
            eventually(lambda: command.metric("swtrace_spans_exported_total") == sent, "all spans are counted")
    assert len(spans) == sent
    assert_one_trace(spans, step=2)
    anchor_error_ns = 1_000_000_000
    ends = [span.end_ns for span in spans if span.name == STEP]
    assert abs(max(ends) - (time.time_ns() - time.monotonic_ns() + run.begin_ns(2) + run.step_ns)) < anchor_error_ns


def assert_one_trace(received: tuple[ReceivedSpan, ...], step: int) -> None:
    """Fail unless the step's spans are one trace with correct parents, links, times and attributes."""
    spans = [span for span in received if span.attributes["swtrace.step"] == step]
    assert {span.trace_id for span in spans} == {trace_id("run-1", step).to_bytes(16, "big")}
    assert Counter((span.name, span.attributes["swtrace.rank"]) for span in spans) == {
        (name, rank): count for rank in (0, 1) for name, count in ((STEP, 1), (BROADCAST, 5), (WAIT, 5))
    }
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        rank = span.attributes["swtrace.rank"]
        assert span.resource["service.name"] == "swtrace"
        assert span.resource["service.instance.id"] == f"run-1/{rank}"
        if span.name == STEP:
            assert span.parent_span_id == b""
            continue
        parent = by_id[span.parent_span_id]
        assert (parent.name, parent.attributes["swtrace.rank"]) == (STEP, rank)
        inside = parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns
        assert inside or (span.name, span.attributes["swtrace.crosses_steps"]) == (BROADCAST, True)
        for link in span.links:
            assert by_id[link].name == BROADCAST
            assert by_id[link].attributes["swtrace.layer"] == span.attributes["swtrace.layer"]
            assert (by_id[link].attributes["swtrace.rank"] == rank) is (span.name == WAIT)
    assert sum(bool(span.links) for span in spans) == 15
    assert {name.removeprefix("swtrace.") for span in spans for name in span.attributes} >= ATTRIBUTES


def test_sigterm_exports_what_there_is(run: RecordedRun, receiver: SpanReceiver) -> None:
    """Spans of an incomplete batch, and steps that a rank has not ended, are exported before the daemon ends."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with daemon(run.directory, **settings) as command:
        eventually(lambda: command.metric("swtrace_rank_up") == 2, "the ranks")
        run.write(4)
        run.write_rank(0, 4)
        assert receiver.spans() == ()
        assert command.end() == ""
        assert command.process.returncode == 0
    assert len(receiver.spans()) == 4 * SPANS_PER_STEP - 2 + 11


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_ends_in_order(run: RecordedRun, number: int) -> None:
    """SIGTERM and Ctrl-C end the daemon with exit code 0 and nothing on stderr."""
    run.write(1)
    with daemon(run.directory) as command:
        assert command.client.get("/healthz").text == "ok\n"
        assert command.end(number) == ""
        assert command.process.returncode == 0


def test_dead_collector_slows_nothing(run: RecordedRun) -> None:
    """Without a collector, draining and scraping continue, drops are counted, and shutdown is bounded."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "1",
    }
    with daemon(run.directory, **settings) as command:
        for _ in range(10):
            run.write(20)
            assert command.metric("swtrace_ring_pending_records") == 0
            assert command.metric("swtrace_steps_total", rank="0") == run.steps
        assert command.metric("swtrace_spans_dropped_total", reason="queue_full") > 0
        assert command.metric("swtrace_spans_exported_total") == 0
        command.end()
        assert command.process.returncode == 0


def test_killed_daemon_loses_nothing_that_is_in_the_rings(tmp_path: Path) -> None:
    """A daemon that is killed and restarted counts every record, while the ranks keep writing."""
    with ranks_process(tmp_path, 50):
        with daemon(tmp_path) as first:
            assert first.metric("swtrace_steps_total", rank="0") >= 50
            first.process.kill()
        with daemon(tmp_path) as second:
            before = second.metric("swtrace_steps_total", rank="0")
            assert before >= 50
            assert second.metric("swtrace_ring_lost_records_total") == 0
            eventually(lambda: second.metric("swtrace_steps_total", rank="0") > before, "the ranks to go on")
            ring = second.client.get("/api/v1/ranks").json()["ranks"][0]["ring"]
            assert ring["written"] == ring["delivered"] + ring["pending"]


def test_killed_rank_is_down_and_its_records_are_counted(tmp_path: Path) -> None:
    """After SIGKILL a rank is down and not closed, and every record that it committed has been counted."""
    with ranks_process(tmp_path, 50) as ranks, daemon(tmp_path) as command:
        assert command.metric("swtrace_rank_up") == 2
        ranks.kill()
        ranks.wait(patience())
        eventually(lambda: command.metric("swtrace_rank_up") == 0, "the ranks to be down")
        for rank in command.client.get("/api/v1/ranks").json()["ranks"]:
            assert (rank["up"], rank["closed"]) == (False, False)
            ring = rank["ring"]
            assert (ring["pending"], ring["lapped"], ring["damaged"]) == (0, 0, 0)
            assert ring["written"] == ring["delivered"] == rank["records"] >= 50 * 6


def test_two_daemons_at_once_see_the_same(run: RecordedRun) -> None:
    """Readers do not disturb each other: two daemons over one folder report the same."""
    with daemon(run.directory) as one, daemon(run.directory) as other:
        for _ in range(5):
            run.write(10)
            for command in (one, other):
                assert command.metric("swtrace_ring_records_total", rank="0") == run.written
                assert command.metric("swtrace_steps_total", rank="1") == run.steps
                assert command.metric("swtrace_ring_lost_records_total") == 0


def test_daemons_agree_on_ids_without_talking(run: RecordedRun, receiver: SpanReceiver) -> None:
    """Two daemons export the same step under the same ids."""
    run.write(1)
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "1"}
    with daemon(run.directory, **settings), daemon(run.directory, **settings):
        spans = receiver.wait_for(2 * (SPANS_PER_STEP - 2))
    assert set(Counter((span.trace_id, span.span_id, span.parent_span_id) for span in spans).values()) == {2}


def test_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """A daemon whose port is taken names it, says how to choose another, and exits with code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "swtrace", "daemon", "--dir", str(tmp_path)]
        failed = subprocess.run(
            command,
            env=environment(SWTRACE_LISTEN=address),
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
    assert failed.returncode == 1
    assert address in failed.stderr
    assert "SWTRACE_LISTEN" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_unusable_setting_is_a_usage_error(tmp_path: Path) -> None:
    """An invalid setting of an enabled export is named, and ends the command with exit code 2."""
    command = [sys.executable, "-m", "swtrace", "daemon", "--dir", str(tmp_path), "--listen", "127.0.0.1:0"]
    failed = subprocess.run(
        command,
        env=environment(OTEL_TRACES_EXPORTER="console", SWTRACE_TRACE_SAMPLE="2"),
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "SWTRACE_TRACE_SAMPLE" in failed.stderr


def test_stdout_is_the_url_and_console_spans_only(run: RecordedRun) -> None:
    """Stdout carries only the URL, and spans if the console exporter is selected."""
    run.write(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", str(run.directory), "-v"],
        env=environment(OTEL_TRACES_EXPORTER="console"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.terminate()
    rest, _err = process.communicate(timeout=patience())
    decoder, spans = json.JSONDecoder(), []
    while rest := rest.lstrip():
        span, end = decoder.raw_decode(rest)
        spans.append(span)
        rest = rest[end:]
    assert len(spans) == SPANS_PER_STEP - 2


def test_daemon_survives_hostile_rings(run: RecordedRun) -> None:
    """Rings damaged at random, before and while they are read, harm neither the daemon nor the intact ranks."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 (pytest shows it when the test fails)
    chance = random.Random(seed)  # noqa: S311
    run.write(5)
    sound = (run.recorders[0].path).read_bytes()
    victims = []
    for number in range(12):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 20, 2000))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        victim = run.directory / f"ring-hostile-{number}-00000000.swt"
        victim.write_bytes(damaged[: chance.choice((len(damaged), len(damaged) // 2))])
        victims.append(victim)
    with daemon(run.directory) as command:
        for _ in range(10):
            victim = chance.choice(victims)
            with victim.open("r+b") as ring:
                ring.seek(chance.randrange(max(1, victim.stat().st_size)))
                ring.write(chance.randbytes(chance.choice((8, 64, 4096))))
            run.write(5)
            assert command.client.get("/healthz").text == "ok\n"
            assert command.client.get("/api/v1/snapshot").status_code == 200
            assert command.metric("swtrace_steps_total", rank="1") == run.steps
        assert "Traceback" not in command.end()
        assert command.process.returncode == 0


def test_daemon_loads_neither_torch_nor_vllm() -> None:
    """A daemon loads neither torch nor vLLM, exporters included."""
    code = (
        "import sys, swtrace.cli.daemon, swtrace.daemon.server\n"
        "from swtrace.spans.delivery import make_span_sink\n"
        "from swtrace.spans.environment import SpanSettings\n"
        "for protocol in ('grpc', 'http/protobuf'):\n"
        "    make_span_sink(SpanSettings(exporters=('otlp',), protocol=protocol)).close(1)\n"
        "print([name for name in ('torch', 'vllm', 'swtrace.series', 'swtrace.vllm') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_daemon_needs_no_folder_yet(tmp_path: Path) -> None:
    """A daemon started before its ranks finds them as soon as they exist."""
    with daemon(tmp_path / "later") as command:
        assert command.metric("swtrace_rank_up") == 0
        run = RecordedRun(tmp_path / "later")
        eventually(lambda: command.metric("swtrace_rank_up") == 2, "the ranks")
        run.close()


def test_daemon_changes_nothing_in_the_folder(run: RecordedRun) -> None:
    """Reading changes neither bytes nor time stamps of the rings."""
    run.write(3)
    before = folder(run.directory)
    with daemon(run.directory) as command:
        assert command.metric("swtrace_steps_total", rank="0") == 3
        command.end()
    assert folder(run.directory) == before


def folder(directory: Path) -> list[tuple[str, int, bytes]]:
    """Return the contents and metadata of the files of a folder."""
    return sorted((path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir())


@pytest.mark.parametrize(("status", "somewhere"), [(301, True), (302, False), (307, True), (308, True)])
def test_spans_that_a_collector_redirects_are_dropped_and_counted(
    run: RecordedRun, receiver: SpanReceiver, status: int, *, somewhere: bool
) -> None:
    """A redirect delivers nothing: spans are dropped with a reason, and the log names the target."""
    redirecting = SpanReceiver(status, f"{receiver.endpoint}/v1/traces" if somewhere else None)
    try:
        with daemon(run.directory, OTEL_EXPORTER_OTLP_ENDPOINT=redirecting.endpoint) as running:
            run.write(5)
            eventually(
                lambda: running.metric("swtrace_spans_dropped_total", reason="export_failed") > 0, "spans to be dropped"
            )
            assert running.metric("swtrace_spans_exported_total") == 0
            said = running.end()
    finally:
        redirecting.close()
    assert receiver.spans() == ()
    assert said.count("the collector redirects") == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in said
