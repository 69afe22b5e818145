"""A daemon that cannot read its rings or lags says so, and never shows outdated figures as current."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.observing import HostRings
from swtrace.observing.origin import Polled
from swtrace.spans.delivery import NoSpans
from swtrace.spans.origins import Origins
from swtrace.trace import directory, tail
from tests.support.daemon_threads import serving
from tests.support.patience import eventually
from tests.support.recorded_run import RecordedRun


def samples(client: httpx.Client) -> dict[str, float]:
    """Return every sample of a scrape, by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_a_daemon_whose_reading_fails_shows_no_figure_of_any_rank(
    run: RecordedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While polls fail, metrics and API show no rank. The API and /healthz give the reason, and it is logged once."""
    poll, broken = HostRings.poll, [False]

    def fails(rings: HostRings, limit: int | None = None) -> Polled:
        if broken[0]:
            raise OSError("the disk is on fire")
        return poll(rings, limit)

    monkeypatch.setattr(HostRings, "poll", fails)
    with serving(run.directory) as client, caplog.at_level(logging.WARNING):
        before = samples(client)
        broken[0] = True
        during = [samples(client) for _ in range(20)]
        answers = [client.get("/healthz"), client.get("/api/v1/snapshot")]
        broken[0] = False
        run.write()
        after = samples(client)
        assert client.get("/healthz").text == "ok\n"
    assert before['swtrace_rank_up{rank="0"}'] == before["swtrace_daemon_ready"] == 1
    for seen in during:
        assert seen["swtrace_daemon_ready"] == 0
        assert not any("rank=" in name for name in seen)
    assert during[-1]["swtrace_daemon_poll_errors_total"] >= 20
    polled = "swtrace_daemon_last_poll_timestamp_seconds"
    assert before[polled] <= during[-1][polled] < after[polled]
    for answer in answers:
        assert answer.status_code == 503
        assert "the disk is on fire" in answer.text
    assert after['swtrace_steps_total{rank="0",series="self_attn.o_proj"}'] == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "cannot read the rings; trying again"
    ]


def test_a_poll_that_does_not_return_shows_no_old_figure(run: RecordedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no snapshot can be taken in time, the last one is not shown again."""
    poll, stuck = HostRings.poll, [False]

    def waits(rings: HostRings, limit: int | None = None) -> Polled:
        eventually(lambda: not stuck[0], "the poll to go on")
        return poll(rings, limit)

    monkeypatch.setattr(HostRings, "poll", waits)
    monkeypatch.setattr("swtrace.daemon.observer.STALE_S", 0.2)
    with serving(run.directory) as client:
        eventually(lambda: samples(client)["swtrace_daemon_ready"] == 1, "the first figures")
        stuck[0] = True
        try:
            eventually(lambda: samples(client)["swtrace_daemon_ready"] == 0, "the daemon to notice")
            seen, health = samples(client), client.get("/healthz")
        finally:
            stuck[0] = False
    assert not any("rank=" in name for name in seen)
    assert health.status_code == 503
    assert "has not returned" in health.text


def test_a_daemon_that_is_catching_up_says_how_far_it_is_behind(
    run: RecordedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that lacks records committed before it shows the lag. One that has caught up shows none."""
    monkeypatch.setattr("swtrace.daemon.observer.CATCH_UP_S", 0.0)
    monkeypatch.setattr("swtrace.daemon.observer.POLL_S", 3600.0)
    poll, slow = HostRings.poll, [True]
    # As slow as a daemon with too little CPU: a few records per poll.
    monkeypatch.setattr(HostRings, "poll", lambda rings, _limit=None: poll(rings, 12 if slow[0] else None))
    monkeypatch.setattr("swtrace.daemon.observer.Observer._run", _polls_when_asked)
    with serving(run.directory) as client:
        client.get("/api/v1/ranks")
        behind = client.get("/api/v1/ranks").json()
        seen = samples(client)
        slow[0] = False
        monkeypatch.setattr("swtrace.daemon.observer.CATCH_UP_S", 60.0)
        whole = client.get("/api/v1/ranks").json()
    assert behind["caught_up"] is False
    assert all(rank["ring"]["pending"] > 0 and rank["ring"]["lag_ns"] > 0 for rank in behind["ranks"])
    assert seen['swtrace_ring_lag_seconds{rank="0"}'] > 0
    assert whole["caught_up"] is True
    assert [rank["ring"]["lag_ns"] for rank in whole["ranks"]] == [0, 0]
    assert [rank["records"] for rank in whole["ranks"]] == [run.written] * 2


def _polls_when_asked(observer) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 (the observer's own loop)
    while not observer._stopping:
        with observer._changed:
            observer._changed.wait_for(lambda: observer._asked > observer._answered or observer._stopping)
        observer._poll(last=observer._stopping)


def test_a_request_reads_all_that_was_committed_before_it(run: RecordedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little one poll reads, an answer holds every record that was written before the request."""
    poll = HostRings.poll
    monkeypatch.setattr(HostRings, "poll", lambda rings, _limit=None: poll(rings, 12))
    monkeypatch.setattr("swtrace.daemon.observer.CATCH_UP_S", 60.0)
    with serving(run.directory) as client:
        for _ in range(3):
            run.write(20)
            document = client.get("/api/v1/ranks").json()
            assert document["caught_up"] is True
            assert [rank["records"] for rank in document["ranks"]] == [run.written] * 2


def test_steps_from_before_the_daemon_are_shown_but_not_exported(run: RecordedRun) -> None:
    """The API has the steps that an older ring holds. Spans are made only of steps that begin after the daemon."""
    offered: list[int] = []

    class Offered(NoSpans):
        def offer(self, step: StepFacts, origins: Origins) -> bool:
            offered.append(step.step)
            return super().offer(step, origins)

    run.write_rank(0, run.steps)
    with serving(run.directory, spans=Offered()) as client:
        run.write_rank(1, run.steps)
        run.steps += 1
        run.write(2)
        shown = client.get("/api/v1/steps", params={"limit": 64}).json()["steps"]
    assert [step["step"] for step in shown] == list(range(13))
    assert offered == [11, 12]


def test_a_folder_that_cannot_be_listed_is_said(run: RecordedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ranks are then invisible. Metrics and health say so, and known rings are still read."""
    with serving(run.directory) as client:
        assert samples(client)["swtrace_daemon_ready"] == 1

        def refused(_directory: Path) -> tuple[Path, ...]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tail, "listed", refused)
        run.write()
        seen, health = samples(client), client.get("/healthz")
        monkeypatch.setattr(tail, "listed", directory.listed)
        assert samples(client)["swtrace_daemon_ready"] == 1
        assert client.get("/healthz").status_code == 200
    assert seen["swtrace_ring_problems"] == 0
    assert seen["swtrace_daemon_ready"] == 0
    assert seen['swtrace_steps_total{rank="0",series="self_attn.o_proj"}'] == 1
    assert health.status_code == 503
    assert "cannot be listed: Permission denied" in health.text


def test_the_start_of_a_daemon_is_a_metric(run: RecordedRun) -> None:
    """A scrape says when the daemon started, as the API does, so that a restart can be seen in Prometheus."""
    with serving(run.directory) as client:
        started = client.get("/api/v1/snapshot").json()["started_unix_ns"]
        assert samples(client)["swtrace_daemon_start_timestamp_seconds"] == started / 1e9
