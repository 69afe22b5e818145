"""A daemon that watches daemons serves the ranks of all their hosts as if they were on its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.daemon.daemon_settings import Watched
from swtrace.observing import HostRings, Link, Roster
from swtrace.observing.events import Event, RankJoined, RecordsRead, RingsSeen
from swtrace.recording.remote import DaemonStream
from swtrace.recording.watched import WatchedDaemons
from tests.support.daemon_threads import serving
from tests.support.patience import eventually
from tests.support.recorded_run import HostRun
from tests.support.scrapes import scrape, value
from tests.support.settling import until
from tests.support.web_files import WebFiles

HOSTS = ("host-a", "host-b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for lost daemons and names more often than for people."""
    monkeypatch.setattr("swtrace.recording.remote._RETRY_S", 0.05)
    monkeypatch.setattr("swtrace.recording.watched._LOOK_UP_S", 0.05)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[HostRun]]:
    """Two ranks of one run on each of two hosts."""
    runs = [HostRun(tmp_path / name, host=name, first=2 * number) for number, name in enumerate(HOSTS)]
    yield runs
    for run in runs:
        run.close()


def write(hosts: Sequence[HostRun], steps: int) -> None:
    """Write whole steps on all hosts."""
    for run in hosts:
        run.write(steps)


def address(client: httpx.Client) -> str:
    """Return the address of the daemon that a client asks."""
    return f"127.0.0.1:{client.base_url.port}"


def ranks(client: httpx.Client) -> set[int]:
    """Return the ranks that a daemon serves."""
    return {rank["rank"] for rank in client.get("/api/v1/ranks").json()["ranks"]}


def sources(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """Return what a daemon says about those that it watches."""
    found = client.get("/api/v1/health").json()["watched"]["sources"]
    return {source["name"]: source for source in found}


def steps(client: httpx.Client) -> list[int]:
    """Return the steps that a daemon serves."""
    return [step["step"] for step in client.get("/api/v1/steps", params={"limit": 64}).json()["steps"]]


def becomes(read: Callable[[], object], wanted: object) -> None:
    """Wait until what is read is what is wanted."""
    eventually(lambda: read() == wanted, f"{wanted}")


@contextmanager
def watching(hosts: Sequence[HostRun], every: int = 1) -> Iterator[tuple[httpx.Client, list[str]]]:
    """Serve each host, and watch these daemons. Yield the client of the watching one, and what it watches."""
    with ExitStack() as stack:
        addresses = [address(stack.enter_context(serving(run.directory))) for run in hosts]
        client = stack.enter_context(serving(Watched(tuple(addresses), every)))
        eventually(lambda: ranks(client) == {0, 1, 2, 3}, "the ranks of both hosts")
        yield client, addresses


def test_the_ranks_of_all_hosts_are_one_series(hosts: list[HostRun]) -> None:
    """Stall and causes of four ranks on two hosts are those of the run, which no host's daemon can know."""
    with watching(hosts) as (client, _):
        write(hosts, 30)
        eventually(lambda: steps(client)[-1:] == [29], "the last step")
        (series,) = client.get("/api/v1/series").json()["series"]
        (step,) = client.get("/api/v1/steps", params={"limit": 1, "fields": "stall_ns"}).json()["steps"]
    assert series["group_ranks"] == [0, 1, 2, 3]
    assert series["clocks"] == 2
    assert [rank["rank"] for rank in series["ranks"]] == [0, 1, 2, 3]
    assert step["complete"]
    assert step["comparable"]
    assert step["present"] == [[True] * 5] * 4


def test_every_rank_is_labelled_by_its_host(hosts: list[HostRun]) -> None:
    """Metrics of ranks carry their host, and those of the sources and of the daemon do not."""
    with watching(hosts) as (client, addresses):
        write(hosts, 5)
        families = scrape(client)
    for number, host in enumerate(HOSTS):
        for rank in (2 * number, 2 * number + 1):
            assert value(families, "swtrace_rank_up", rank=str(rank), host=host) == 1
    assert {sample.labels["source"] for sample in families["swtrace_watched_up"].samples} == set(addresses)
    for name in ("swtrace_watched_up", "swtrace_daemon_ready"):
        assert not [sample for sample in families[name].samples if "host" in sample.labels]


def test_one_rank_number_on_two_hosts_needs_no_other_label(tmp_path: Path) -> None:
    """Two jobs of one host each share rank numbers. Their hosts tell them apart, so neither carries its run id."""
    runs = [HostRun(tmp_path / name, name, host=name, group=2) for name in HOSTS]
    with ExitStack() as stack:
        addresses = tuple(address(stack.enter_context(serving(run.directory))) for run in runs)
        client = stack.enter_context(serving(Watched(addresses, 1)))
        eventually(lambda: client.get("/metrics").text.count("\nswtrace_rank_up{") == 4, "the ranks of both jobs")
        labels = [sample.labels for sample in scrape(client)["swtrace_rank_up"].samples]
    assert labels == [{"rank": rank, "host": host} for rank in ("0", "1") for host in HOSTS]
    for run in runs:
        run.close()


@pytest.mark.parametrize(("every", "read"), [(1, 40), (5, 8)])
def test_only_every_nth_step_is_read(hosts: list[HostRun], every: int, read: int) -> None:
    """The daemon reads one step in so many, with the records of all hosts."""
    with watching(hosts, every) as (client, _):
        write(hosts, 40)
        eventually(lambda: len(steps(client)) == read, "the steps")
        families = scrape(client)
        assert client.get("/api/v1/health").json()["watched"]["every"] == every
    assert all(sample.value == read for sample in families["swtrace_steps_total"].samples)


def test_what_was_written_before_is_not_counted(hosts: list[HostRun]) -> None:
    """A watching daemon that starts late, or again, does not count the steps that the rings still hold."""
    write(hosts, 200)
    with watching(hosts) as (client, _):
        write(hosts, 3)
        eventually(lambda: steps(client)[-1:] == [202], "the last step")
        families = scrape(client)
    assert all(3 <= sample.value <= 5 for sample in families["swtrace_steps_total"].samples)
    assert {sample.value for sample in families["swtrace_watched_lost_records"].samples} == {0}


def test_the_ranks_of_a_lost_daemon_go_and_return(hosts: list[HostRun]) -> None:
    """A lost daemon is said to be lost, and its ranks are not shown until it is back; the others' steps go on."""
    a, b = hosts
    with ExitStack() as stack:
        first, gone = stack.enter_context(serving(a.directory)), ExitStack()
        second = address(gone.enter_context(serving(b.directory)))
        client = stack.enter_context(serving(Watched((address(first), second), 1)))
        eventually(lambda: ranks(client) == {0, 1, 2, 3}, "the ranks of both hosts")
        write(hosts, 3)
        eventually(lambda: steps(client)[-1:] == [2], "the steps of both hosts")

        gone.close()
        eventually(lambda: sources(client)[second]["state"] == "lost", "the loss")
        assert ranks(client) == {0, 1}
        families = scrape(client)
        assert value(families, "swtrace_watched_up", source=second) == 0
        assert value(families, "swtrace_watched_up", source=address(first)) == 1
        assert {sample.labels["rank"] for sample in families["swtrace_rank_up"].samples} == {"0", "1"}
        assert client.get("/healthz").text == "ok\n"
        (problem,) = client.get("/api/v1/health").json()["problems"]
        assert problem["path"] == second
        a.write(1)
        eventually(lambda: steps(client)[-1:] == [3], "a step of the remaining host")

        port = int(second.rpartition(":")[2])
        stack.enter_context(serving(b.directory, port=port))
        eventually(lambda: ranks(client) == {0, 1, 2, 3}, "the ranks that return")
        assert sources(client)[second]["state"] == "live"
        assert client.get("/api/v1/health").json()["problems"] == []


def test_a_daemon_that_reaches_none_is_not_ready() -> None:
    """Without any source, the daemon says why, and that it is not ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with serving(Watched((nobody,), 1)) as client:
        eventually(lambda: client.get("/healthz").status_code == 503, "the daemon to notice")
        assert client.get("/healthz").text == f"{nobody}: Connection refused\n"
        assert value(scrape(client), "swtrace_daemon_ready") == 0


def test_a_viewer_of_a_watching_daemon_sees_all_hosts(hosts: list[HostRun]) -> None:
    """A client of the stream chooses its own steps, whatever the daemon itself reads."""
    write(hosts, 40)
    with watching(hosts, 16) as (client, _), Roster(DaemonStream(address(client), every=5)) as roster:
        until(lambda: any(len(found) == 8 for found in roster.observe().history.values()), roster.poll)
        seen = roster.observe()
    (found,) = seen.history.values()
    assert [step.complete for step in found] == [True] * 8
    assert [rank.identity.host for rank in seen.ranks] == ["host-a", "host-a", "host-b", "host-b"]


def test_a_viewer_gets_the_rings_of_all_hosts_together(hosts: list[HostRun]) -> None:
    """Each report of the rings' state that a watching daemon sends has those of all hosts."""
    with watching(hosts) as (client, _):
        stream = DaemonStream(address(client), newest_steps=8)
        reported: list[int] = []

        def read() -> None:
            events = stream.poll().events
            reported.extend(len(event.rings) for event in events if isinstance(event, RingsSeen))

        until(lambda: 4 in reported, read)
        reported.clear()
        until(lambda: len(reported) >= 6, read)
        stream.close()
    assert set(reported) == {4}


def test_records_are_passed_on_before_all_hosts_have_caught_up(
    hosts: list[HostRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watching daemon does not hold what the rings hold, which may be more than its memory, until it has all."""
    look = HostRings.look
    monkeypatch.setattr(HostRings, "look", lambda rings: replace(look(rings), caught_up=False))
    write(hosts, 3)
    with ExitStack() as stack:
        addresses = [address(stack.enter_context(serving(run.directory))) for run in hosts]
        origin = WatchedDaemons(addresses)
        seen: list[Event] = []
        until(
            lambda: sum(len(event) for event in seen if isinstance(event, RecordsRead)) == 4 * hosts[0].written,
            lambda: seen.extend(origin.poll().events),
        )
        origin.close()
    assert [isinstance(event, RankJoined) for event in seen[:4]] == [True] * 4


def test_a_viewer_that_leaves_ends_its_streams(hosts: list[HostRun]) -> None:
    """What a client of a watching daemon costs is gone once the client is."""

    def reading() -> int:
        return sum(thread.name.startswith("swtrace-stream") for thread in threading.enumerate())

    with watching(hosts) as (client, _):
        before = reading()
        with Roster(DaemonStream(address(client))) as roster:
            until(lambda: len(roster.observe().ranks) == 4, roster.poll)
            assert reading() == before + 3
        becomes(reading, before)


def test_probes_of_a_watched_host_reach_the_viewers(hosts: list[HostRun], monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that cannot reach the hosts gets what the watching daemon measured about their clocks."""
    monkeypatch.setattr("swtrace.daemon.clock_endpoint.own_clock", lambda: "boot of host-b")
    write(hosts, 3)
    with watching(hosts) as (client, _), Roster(DaemonStream(address(client))) as roster:
        probes = roster.ledger._probes
        until(lambda: probes.bounds("boot of host-b", next(iter(probes._maps), ""), 10**15) is not None, roster.poll)


@pytest.mark.parametrize("levels", [1, 2])
def test_no_daemon_watches_a_watching_daemon(hosts: list[HostRun], levels: int) -> None:
    """A daemon that watches itself, or one that watches others, shows no rank twice, and says what to do instead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with serving(hosts[0].directory) as host, ExitStack() as stack:
        watched = address(host)
        itself = f"127.0.0.1:{port}"
        client = stack.enter_context(serving(Watched((watched, itself), 1), port=port))
        if levels == 2:
            client = stack.enter_context(serving(Watched((itself,), 1)))
        eventually(lambda: sources(client)[itself]["state"] == "lost", "the refusal")
        detail = sources(client)[itself]["detail"]
    assert "this daemon watches other daemons, and cannot be watched by one" in detail
    assert f"watch these instead: {watched}" in detail


class Names:
    """What names stand for now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[str] | OSError = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr("swtrace.recording.watched.socket.getaddrinfo", self._answer)

    def _answer(self, host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host != "daemons.test":
            return self._real(host, port, *arguments, **options)
        if isinstance(self.found, OSError):
            raise self.found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port)) for found in self.found]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Return what ``daemons.test`` stands for."""
    return Names(monkeypatch)


@contextmanager
def polled(address: str, credentials: Credentials = ANONYMOUS) -> Iterator[Callable[[], dict[str, Link]]]:
    """Watch, and yield a function that returns the state of each source."""
    origin = WatchedDaemons([address], credentials=credentials)

    def states() -> dict[str, Link]:
        origin.poll()
        return {status.name: status.link for status in origin.status()}

    try:
        yield states
    finally:
        origin.close()


def test_a_name_stands_for_all_of_its_addresses(names: Names) -> None:
    """Daemons that come and go with the addresses of a name are watched from then on, and no longer."""
    with polled("dns+daemons.test:1") as states:
        for found in (["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.3", "127.0.0.4"], ["127.0.0.4"]):
            names.found = found
            becomes(lambda: set(states()), {f"{each}:1" for each in found})


def test_a_look_up_that_fails_drops_no_daemon_but_one_without_an_answer_does(names: Names) -> None:
    """Trouble with the name server is shown, and changes nothing else; a name that is gone has no daemons."""
    with polled("dns+daemons.test:1") as states:
        names.found = ["127.0.0.1"]
        eventually(lambda: states().keys() == {"127.0.0.1:1"}, "the address")
        names.found = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        eventually(lambda: states().get("dns+daemons.test:1") is Link.LOST, "the failure")
        assert "127.0.0.1:1" in states()
        names.found = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        eventually(lambda: states() == {"dns+daemons.test:1": Link.LOST}, "the end of the name")
        names.found = ["127.0.0.1"]
        eventually(lambda: states().keys() == {"127.0.0.1:1"}, "the address again")


def test_the_ranks_of_an_address_that_is_gone_are_forgotten(hosts: list[HostRun], names: Names) -> None:
    """A pod that leaves takes its ranks with it, and they return with the next one."""
    names.found = ["127.0.0.1"]
    with ExitStack() as stack:
        host = stack.enter_context(serving(hosts[0].directory))
        client = stack.enter_context(serving(Watched((f"dns+daemons.test:{host.base_url.port}",), 1)))
        for found, expected in ((["127.0.0.1"], {0, 1}), ([], set()), (["127.0.0.1"], {0, 1})):
            names.found = list(found)
            becomes(lambda: ranks(client), expected)


def test_the_certificate_of_a_looked_up_daemon_has_the_name(hosts: list[HostRun], names: Names, tmp_path: Path) -> None:
    """Daemons behind a name show a certificate of that name, not of their addresses; another name is refused."""
    web = WebFiles.make(tmp_path / "web")
    leaf = web.authority.issue_cert("daemons.test")
    leaf.private_key_pem.write_to_path(web.folder / "server.key")
    leaf.cert_chain_pems[0].write_to_path(web.folder / "server.pem")
    shown = Credentials(ca=web.folder / "ca.pem", user="alice", password_file=web.folder / "password")
    names.found = ["127.0.0.1"]
    with serving(hosts[0].directory, web=web) as host:
        port = host.base_url.port
        with polled(f"dns+https://daemons.test:{port}", shown) as states:
            eventually(lambda: states() == {f"https://127.0.0.1:{port}": Link.LIVE}, "the ranks")
        with polled(f"https://127.0.0.1:{port}", shown) as states:
            eventually(lambda: states() == {f"https://127.0.0.1:{port}": Link.LOST}, "the refusal")


def test_a_protected_daemon_is_watched_with_credentials(hosts: list[HostRun], tmp_path: Path) -> None:
    """TLS and a password are as good for a watching daemon as for a viewer; without them it says what is missing."""
    web = WebFiles.make(tmp_path / "web")
    shown = Credentials(ca=web.folder / "ca.pem", user="alice", password_file=web.folder / "password")
    with serving(hosts[0].directory, web=web) as host:
        where = str(host.base_url).rstrip("/")
        with serving(Watched((where,), 1, shown)) as client:
            eventually(lambda: ranks(client) == {0, 1}, "the ranks")
        with serving(Watched((where,), 1, replace(shown, user=None, password_file=None))) as client:
            eventually(lambda: sources(client)[where]["state"] == "lost", "the refusal")
            assert "401 Unauthorized" in sources(client)[where]["detail"]
