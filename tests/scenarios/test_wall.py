"""The wall, live: real Prometheus over real daemons over running demos, with compose's own files and command line.

Three hosts' worth: one demo whose broadcasts cannot hide, one with a straggler, and ranks with every oddity that an
alert exists for.
"""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.exit_codes import ExitCode
from swtrace.diagnosis.finding import STALLED_ABOVE
from swtrace.plan_file import Conditions, Interval, PlanFile
from tests.support.daemon_command import DaemonCommand, daemon, environment
from tests.support.grafana_json import PanelQuery, queries
from tests.support.odd_ranks import STALL_RATIO, OddRanks
from tests.support.patience import eventually, patience
from tests.support.prometheus_process import Prometheus, alerts, prometheus
from tests.support.span_receiver import SpanReceiver, free_port

SERIES = "demo.linear"
COMPARED_STEPS = 10
TOGETHER_S = 10.0
"""Both demos run side by side for at least this long, however long either takes to start."""
RECALL_S = 3600
"""A time range that covers the whole test, however slow."""
_EVERY = dict.fromkeys(("daemon", "host", "series", "rank"), ".*")
SCOPE = {"job": "swtrace", **_EVERY, "__rate_interval": "10s", "__range": "60s"}
RULE_LABELS = {"rank": {"job", "instance", "rank", "series"}, "series": {"job", "series"}, "swtrace": set()}
"""Labels of a recorded series, by the first part of its name; the spread within a run has the run, too."""
EMPTY_IF_GOOD = {"Untimed steps of devices"}
OF_ONE_HOST = {"Straggler"}
MISSED_PLAN = PlanFile(
    series=SERIES,
    start_layer=0,
    settings={"prefetch_step": 1, "transport": "broadcast"},
    step_seconds=Interval(0.001, 0.001, 0.001),
    stall_ratio=Interval(0.001, 0.0, 0.001),
    conditions=Conditions(ranks=2, stack_layers=60, layer_bytes=1 << 20),
    made_at="2026-11-28T18:00:00+00:00",
)
"""A plan that the stalled demo misses: it has 60 layers."""
TROUBLES = {rule["alert"] for rule in alerts()} - {"SwtraceDaemonBlind", "SwtraceBetterThanPlanned"}
"""Alerts that find trouble here."""
OF_SEVERAL_HOSTS = {
    "Clock bound",
    "Clock offset",
    "Clock drift",
    "Clock restarts",
    "Watched daemon answers",
    "Behind a watched daemon",
    "Records lost on the way",
}
"""Empty here, because each daemon reads one host."""

pytestmark = pytest.mark.prometheus


@dataclass
class Host:
    """One daemon, as Prometheus and the live API see it, and the steps that its ledger has reported."""

    daemon: DaemonCommand
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    cursor: int = 0

    @property
    def instance(self) -> str:
        """Return its instance label in Prometheus."""
        return f"{self.daemon.client.base_url.host}:{self.daemon.client.base_url.port}"

    def api(self, document: str, **parameters: str) -> Any:
        """Return a document of the live API."""
        return self.daemon.client.get(f"/api/v1/{document}", params=parameters).json()

    def take_steps(self) -> None:
        """Keep the steps that finished since the last call."""
        got = self.api("steps", since=str(self.cursor), limit="64", fields="stall_ns")
        self.cursor = max([self.cursor, *(step["number"] for step in got["steps"])])
        self.steps |= {step["step"]: step for step in got["steps"]}


@dataclass
class Wall:
    """All running processes."""

    prometheus: Prometheus
    stalled: Host
    straggler: Host
    odd: Host
    spans: SpanReceiver

    @property
    def demos(self) -> tuple[Host, Host]:
        """Return the hosts with a demo."""
        return self.stalled, self.straggler


@pytest.fixture(scope="module")
def wall() -> Iterator[Wall]:
    """Run everything until both demos have ended and the last scrape has seen their end."""
    # Let Ctrl-C reach the demos, also where a shell ignores it on behalf of a job in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="swtrace-wall-")))
        directories = [work / name for name in ("stalled", "straggler", "odd")]
        for directory in directories:
            directory.mkdir()
        receiver = SpanReceiver()
        stack.callback(receiver.close)
        odd = OddRanks(directories[2])
        stack.callback(odd.close)
        endpoints = (receiver.endpoint, receiver.endpoint, f"http://127.0.0.1:{free_port()}")
        stalled, straggler, odd_host = hosts = [
            Host(
                stack.enter_context(
                    daemon(
                        directory,
                        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
                        OTEL_EXPORTER_OTLP_TIMEOUT="1",
                        SWTRACE_TRACE_SAMPLE="0.1",
                    )
                )
            )
            for directory, endpoint in zip(directories, endpoints, strict=True)
        ]
        # The odd daemon's collector does not answer, and one target is a daemon that does not.
        targets = [*(host.instance for host in hosts), f"127.0.0.1:{free_port()}"]
        server = stack.enter_context(prometheus(work, targets, scrape_s=1, evaluate_s=1))
        wall = Wall(server, stalled, straggler, odd_host, receiver)
        MISSED_PLAN.write(work / "plan.json")
        demos = [
            _demo(directories[0], "stalled", SWTRACE_PLAN=str(work / "plan.json")),
            _demo(directories[1], "straggler", "--layers", "24", "--compute-ms", "3", "--fault", "straggler:ms=6"),
        ]
        ended = threading.Event()
        follower = threading.Thread(target=_follow, args=(wall.demos, ended), daemon=True)
        follower.start()
        try:
            eventually(lambda: _busy_moment(wall) is not None, "both demos running side by side, and every daemon up")
            # A rank is not named at every scrape, and not at all before the alert's minutes have enough scrapes.
            eventually(lambda: _alerts_seen(server) >= TROUBLES, "every alert that finds trouble here")
            for demo in demos:
                demo.send_signal(signal.SIGINT)
            for demo in demos:
                output = _output_of(demo)
                assert demo.returncode == ExitCode.INTERRUPTED, output
        finally:
            for demo in demos:
                demo.kill()
            ended.set()
            follower.join(patience())
        for host in wall.demos:
            host.take_steps()
            _settle(wall, host)
        yield wall


def _alerts_seen(server: Prometheus) -> set[str]:
    """Return the names of the alerts that were pending or fired."""
    samples = server.query(f"max_over_time(ALERTS[{RECALL_S}s])")
    return {sample.labels["alertname"] for sample in samples if sample.value == 1}


def _demo(directory: Path, scenario: str, *dials: str, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "swtrace", "demo", "--scenario", scenario, "--no-daemon"]
    return subprocess.Popen(
        [*command, "--ranks", "2", "--duration", "3600", *dials],
        env=environment(SWTRACE_DIR=str(directory), PYTHONFAULTHANDLER="1", **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output_of(demo: subprocess.Popen[str]) -> str:
    """Return the output of an interrupted demo; a demo that does not end also reports where it is."""
    try:
        return demo.communicate(timeout=patience())[0]
    except subprocess.TimeoutExpired:
        demo.send_signal(signal.SIGABRT)
        return demo.communicate()[0]


def _follow(hosts: tuple[Host, ...], ended: threading.Event) -> None:
    while not ended.wait(0.25):
        for host in hosts:
            host.take_steps()


def _settle(wall: Wall, host: Host) -> None:
    """Wait until Prometheus has scraped the ledger's state after the ranks ended."""
    total = sum(rank["totals"]["steps"] for rank in _rank_facts(host).values())

    def scraped() -> bool:
        samples = wall.prometheus.query(f'swtrace_steps_total{{instance="{host.instance}"}}')
        down = wall.prometheus.query(f'sum(swtrace_rank_up{{instance="{host.instance}"}}) == 0')
        return bool(down) and sum(sample.value for sample in samples) == total

    eventually(scraped, "the last scrape")


def _rank_facts(host: Host) -> dict[str, Any]:
    """Return the ledger's facts of the demo's series, by rank."""
    (series,) = (series for series in host.api("series")["series"] if series["name"] == SERIES)
    return {str(rank["rank"]): rank for rank in series["ranks"]}


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_every_panel_query_returns_series_with_its_labels(wall: Wall, query: PanelQuery) -> None:
    """A panel has values with every label of its legend, and from every host if the legend names hosts."""
    # In the middle of the demos: rates at the end of time are of ranks that have ended.
    samples = wall.prometheus.query(query.filled(**SCOPE), _busy(wall))
    if query.panel in EMPTY_IF_GOOD | OF_SEVERAL_HOSTS:
        assert samples == []
        return
    assert samples, query
    assert any(math.isfinite(sample.value) for sample in samples), query
    # Samples have a run id if two are alive, and a host if a daemon watches others. Findings may be about no rank.
    optional = {"le", "run_id", "host"} | ({"rank", "series"} if "swtrace_finding" in query.expr else set())
    for label in set(re.findall(r"\{\{(\w+)\}\}", query.legend)) - optional:
        assert all(sample.labels.get(label) for sample in samples), (query, label)
    if "{{instance}}" in query.legend and query.panel not in OF_ONE_HOST:
        shown = {sample.labels["instance"] for sample in samples}
        assert shown >= {host.instance for host in wall.demos}, query


def _busy(wall: Wall) -> float:
    """Return a time at which both demos had run for a while, and every daemon had just answered."""
    moment = _busy_moment(wall)
    assert moment is not None
    return moment


def _busy_moment(wall: Wall) -> float | None:
    begins, ends = [], []
    for host in wall.demos:
        scrapes = wall.prometheus.scrapes(_selector(host, "swtrace_steps_total", rank="0"), RECALL_S)
        busy = [time for (time, steps), (_, before) in zip(scrapes[1:], scrapes, strict=False) if steps > before]
        if not busy:
            return None
        begins.append(busy[0])
        ends.append(busy[-1])
    moment = min(ends)
    while moment > max(begins) + TOGETHER_S:
        up = [sample.value for sample in wall.prometheus.query('sum(up{job="swtrace"})', moment)]
        ended = [wall.prometheus.query(f"{_selector(host, 'swtrace_rank_up')} == 0", moment) for host in wall.demos]
        if up == [3] and not any(ended):
            return moment
        moment -= 0.5
    return None


def _selector(host: Host, metric: str, **labels: str) -> str:
    wanted = {"instance": host.instance, **labels}
    return f"{metric}{{{', '.join(f'{label}={text!r}' for label, text in wanted.items())}}}"


def test_stall_ratio_of_an_interval_is_the_ledgers(wall: Wall) -> None:
    """Between two scrapes the panel's stall ratio is that of the ledger's steps between them, on every rank.

    A scrape is of one moment, and counts the steps that had ended by then; of the stall it may hold a part of the step
    under way, so the ledger's sums over the steps give a lower and an upper bound, one step apart.
    """
    for host in wall.demos:
        for rank in ("0", "1"):
            scrapes = wall.prometheus.scrapes(_selector(host, "swtrace_steps_total", rank=rank), RECALL_S)
            # The last one is the last whose step under way came to its end, which the very last ones' need not. The
            # first is the first after which no step was missed: the API keeps 64, and this process may be slow to ask.
            last_time, last = [scrape for scrape in scrapes if scrape[1] < scrapes[-1][1]][-1]
            first_time, first = next(
                (moment, steps)
                for moment, steps in scrapes
                if steps > 0 and all(number in host.steps for number in range(int(steps), int(last) + 1))
            )
            assert last - first > COMPARED_STEPS
            # rate() extrapolates to the window's ends, but no counter below 0: the less to extrapolate, the better.
            margin_s = 0.005
            window = f"{round((last_time - first_time + 2 * margin_s) * 1000)}ms"
            samples = wall.prometheus.query(
                _panel("swtrace-fleet", "Stall ratio by rank").filled(**{**SCOPE, "__rate_interval": window}),
                last_time + margin_s,
            )
            (shown,) = (s.value for s in samples if (s.labels["instance"], s.labels["rank"]) == (host.instance, rank))
            steps = [host.steps[number] for number in range(int(first), int(last))]
            index = steps[0]["ranks"].index(int(rank))
            stalls = [sum(step["stall_ns"][index]) for step in steps]
            elapsed = sum(step["duration_ns"][index] for step in steps)
            most = sum(stalls) + sum(host.steps[int(last)]["stall_ns"][index])
            exact = 1e-3
            assert (sum(stalls) - stalls[0]) / elapsed * (1 - exact) <= shown <= most / elapsed * (1 + exact)


def _panel(dashboard: str, title: str) -> PanelQuery:
    (query,) = (query for query in queries() if (query.dashboard, query.panel) == (dashboard, title))
    return query


def test_totals_are_the_ledgers(wall: Wall) -> None:
    """Once the ranks have ended, every counter and gauge in Prometheus is the ledger's own number."""
    for host in wall.demos:
        for rank, facts in _rank_facts(host).items():
            totals, info = facts["totals"], facts["info"]
            expected = {
                _selector(host, "swtrace_steps_total", rank=rank): totals["steps"],
                _selector(host, "swtrace_wait_stall_seconds_sum", rank=rank): totals["stall_ns"] / 1e9,
                _selector(host, "swtrace_wait_stall_seconds_count", rank=rank): sum(totals["stall"]["counts"]),
                _selector(host, "swtrace_prefetch_slack_seconds_sum", rank=rank): totals["slack"]["sum_ns"] / 1e9,
                _selector(host, "swtrace_transfer_bytes_total", rank=rank): totals["bytes"],
                _selector(host, "swtrace_prefetch_efficiency_ratio", rank=rank): facts["recent"]["efficiency"],
                _selector(host, "swtrace_stall_seconds", rank=rank): facts["last_stall_ns"] / 1e9,
                _selector(host, "swtrace_series_bytes", rank=rank, kind="owned"): info["owned_bytes"],
                _selector(host, "swtrace_series_bytes", rank=rank, kind="windows"): info["window_bytes"],
                _selector(host, "swtrace_series_bytes", rank=rank, kind="replicated"): info["replicated_bytes"],
            }
            for outcome, waits in totals["waits"].items():
                expected[_selector(host, "swtrace_waits_total", rank=rank, outcome=outcome)] = waits
            for reason, steps in totals["untimed_steps"].items():
                expected[_selector(host, "swtrace_untimed_steps_total", rank=rank, reason=reason)] = steps
            for cause, cause_ns in totals["cause_ns"].items():
                expected[_selector(host, "swtrace_stall_cause_seconds_total", rank=rank, cause=cause)] = cause_ns / 1e9
            for selector, value in expected.items():
                (sample,) = wall.prometheus.query(selector)
                assert sample.value == pytest.approx(value, rel=1e-12), selector


def test_every_recording_rule_has_its_labels_and_the_panels_value(wall: Wall) -> None:
    """Each recording rule has its series, with the labels that its name says, and no rule fails."""
    rules = [rule for rule in wall.prometheus.rules() if rule["type"] == "recording"]
    assert len(rules) == 9
    busy = _busy(wall)
    for rule in rules:
        assert rule["health"] == "ok", rule
        samples = wall.prometheus.query(rule["name"], busy)
        assert samples, rule["name"]
        for sample in samples:
            labels = set(sample.labels) - ({"run"} if ":spread" in rule["name"] else set())
            assert labels == {"__name__", *RULE_LABELS[rule["name"].partition(":")[0]]}, rule["name"]
    ratio = wall.prometheus.query(_selector(wall.odd, "rank:swtrace_stall_ratio:rate5m", series="odd.stalling"), busy)
    assert [sample.value for sample in ratio] == [pytest.approx(STALL_RATIO, rel=1e-6)]


def test_scenarios_can_be_told_from_their_numbers(wall: Wall) -> None:
    """The stalled demo stalls critically; in the other one more of the stall is skew, and the straggler is named."""
    busy = _busy(wall)
    stalled = wall.prometheus.query(_selector(wall.stalled, "rank:swtrace_stall_ratio:rate5m"), busy)
    assert max(sample.value for sample in stalled) > STALLED_ABOVE
    share = {
        host.instance: {
            sample.labels["cause"]: sample.value
            for sample in wall.prometheus.query(
                f"sum by (cause) (rate({_selector(host, 'swtrace_stall_cause_seconds_total')}[10s])) / ignoring (cause)"
                f" group_left () sum(rate({_selector(host, 'swtrace_stall_cause_seconds_total')}[10s]))",
                busy,
            )
        }
        for host in wall.demos
    }
    assert share[wall.straggler.instance]["skew"] > share[wall.stalled.instance]["skew"]
    assert share[wall.stalled.instance]["transfer"] > share[wall.straggler.instance]["transfer"]
    straggling = wall.prometheus.query(
        f"max_over_time({_selector(wall.straggler, 'swtrace_straggler_excess_ratio')}[{RECALL_S}s])"
    )
    named = {sample.labels["rank"]: sample.value for sample in straggling}
    assert named["1"] > 0.05
    assert named["0"] == 0


def test_every_alert_finds_its_trouble(wall: Wall) -> None:
    """Each alert's expression returns series here, and its summary has their numbers and names.

    promtool alone tests the expressions of two: that of a daemon that cannot read, which nothing here can cause
    (tests/daemon/test_observer.py tests its metric), and that of a run that is better than planned: of the runs of one
    job that share linears of one name, all would have to be, and one here misses its plan.
    """
    loaded = {rule["name"]: rule for rule in wall.prometheus.rules() if rule["type"] == "alerting"}
    assert len(loaded) == 18
    assert {name for name, rule in loaded.items() if rule["health"] != "ok"} == set()
    assert _alerts_seen(wall.prometheus) == TROUBLES
    summaries = [alert["annotations"]["summary"] for rule in loaded.values() for alert in rule["alerts"]]
    assert summaries
    for summary in summaries:
        assert "<no value>" not in summary
        assert "<error" not in summary
    text = "\n".join(summaries)
    assert re.search(r"Series odd\.stalling: rank 0 on \S+ stalls for 12\.5% of its step time", text)
    assert "does not share odd.refused: different shapes" in text
    assert "the effective prefetch step is 1, not 2 as configured" in text


def test_slowest_waits_lead_to_traces_that_were_exported(wall: Wall) -> None:
    """Exemplars that Prometheus kept name traces that the collector has received."""
    expr = _selector(wall.stalled, "swtrace_wait_stall_seconds_bucket")
    data = wall.prometheus.get("query_exemplars", query=expr, start=time.time() - RECALL_S, end=time.time())
    exemplars = [exemplar for series in data for exemplar in series["exemplars"]]
    assert exemplars
    wanted = {exemplar["labels"]["trace_id"] for exemplar in exemplars}
    eventually(lambda: wanted <= {span.trace_id.hex() for span in wall.spans.spans()}, "the traces of all exemplars")
    assert all(exemplar["labels"]["layer"].isdigit() for exemplar in exemplars)


def test_daemons_are_scraped_as_openmetrics_without_a_complaint(wall: Wall) -> None:
    """Every living daemon is up for Prometheus, no scrape failed to parse, and no exemplar or sample was refused."""
    health = {target["labels"]["instance"]: target for target in wall.prometheus.targets()}
    for host in (*wall.demos, wall.odd):
        assert health[host.instance]["health"] == "up", health[host.instance]["lastError"]
        assert health[host.instance]["labels"]["job"] == "swtrace"
    log = wall.prometheus.log.read_text()
    complaints = [line for line in log.splitlines() if re.search(r"level=(warn|error)", line)]
    assert complaints == []


def test_what_one_host_cannot_see_is_said_to_be_unknown(wall: Wall) -> None:
    """Of a group whose peer is on another host, stall is unattributed: no skew ratio, and no straggler, is made up."""
    busy, series = _busy(wall), "odd.stalling"
    causes = wall.prometheus.query(
        f"rate({_selector(wall.odd, 'swtrace_stall_cause_seconds_total', series=series)}[10s]) > 0", busy
    )
    assert [sample.labels["cause"] for sample in causes] == ["unattributed"]
    for absent in ("rank:swtrace_skew_ratio:rate5m", "swtrace_straggler_excess_ratio"):
        assert wall.prometheus.query(_selector(wall.odd, absent, series=series), busy) == []
