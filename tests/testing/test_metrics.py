"""A running daemon's facts, asked by a test."""

from __future__ import annotations

import pytest

from swtrace.cli.child import DaemonProcess
from swtrace.testing import read_metrics
from swtrace.testing.metrics import MetricsError
from swtrace.testing.tracing import Tracing
from tests.support.damaged_answers import DAMAGED, answering
from tests.support.recorded_run import STALL_NS, RecordedRun
from tests.support.suites import outcomes

pytest_plugins = ["pytester"]


def test_a_daemons_facts_are_those_of_the_rings() -> None:
    """Stall, on-time rate, efficiency and windows read from /metrics are what the rings say."""
    with Tracing() as tracing:
        run = RecordedRun(tracing.directory)
        daemon = DaemonProcess(tracing.directory)
        try:
            while not daemon.poll():
                assert daemon.alive
            run.write(12)
            facts = read_metrics(daemon.url or "")
        finally:
            daemon.close()
        assert facts.stall_seconds(rank=1) == pytest.approx(12 * STALL_NS * 1e-9)
        assert facts.stall_ratio(rank=1) == pytest.approx(tracing.stall_ratio(rank=1))
        assert facts.on_time_rate(rank=1) == pytest.approx(tracing.on_time_rate(rank=1))
        assert facts.efficiency(rank=1) == pytest.approx(tracing.efficiency(rank=1))
        assert facts.lost() == 0
        assert sum(facts.occupancy(rank=1).values()) == 2
        for question in (facts.stall_seconds, facts.occupancy, facts.lost):
            with pytest.raises(MetricsError, match=r"rank=7; found: (state: .*; )?rank: 0, 1"):
                question(rank=7)
        run.close()


def test_a_daemon_that_is_not_there_is_a_clear_error() -> None:
    """What cannot be read is an error that names the address."""
    with pytest.raises(MetricsError, match=r"127\.0\.0\.1:1: "):
        read_metrics("127.0.0.1:1")


@pytest.mark.parametrize("damage", ["cut gzip", "broken gzip", "no text", "cut body", "no HTTP", "a list"])
def test_damaged_metrics_are_one_clear_error(damage: str) -> None:
    """Facts for tests are read only from valid metrics."""
    with answering(DAMAGED[damage]) as address, pytest.raises(MetricsError, match=address):
        read_metrics(address)


def test_a_daemon_that_does_not_answer_is_one_line(suite: pytest.Pytester) -> None:
    """`read_metrics` names the address and the reason, without tracebacks of swtrace and urllib."""
    code = "\nfrom swtrace.testing import read_metrics\n\ndef test_it(): read_metrics('http://127.0.0.1:1')\n"
    result = outcomes(suite, code)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *MetricsError: http://127.0.0.1:1: *refused", "test_*.py:*: MetricsError"])
    assert "urllib" not in result.stdout.str()
