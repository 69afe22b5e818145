"""Several hosts on one machine: each with a network, a host name and a CLOCK_MONOTONIC of its own.

A host is a set of namespaces. All are below one user namespace, so this needs no root where the kernel lets users make
one. Hosts are connected by a bridge. A namespace lives as long as a process in it. The processes that keep it, and all
commands on the host, end with the process that made the hosts, even if that is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon_command import ROOT, environment, served_url
from tests.support.patience import patience

PORT = 9465
MTU = 65000
"""Large packets, because a delayed link forwards each one in Python."""
_HOLD = ("sh", "-c", "echo; read -r line")
"""Ends when its input is closed, which happens at the latest when the process that has the other end is gone."""


@dataclass(frozen=True)
class Host:
    """A host. Processes run on it by :meth:`command` or :meth:`enter`."""

    name: str
    address: str
    ahead_ns: int
    """How far its clock is ahead of this machine's."""
    rings: Path
    """Its SWTRACE_DIR."""
    namespaces: Mapping[str, str]
    """Paths of its namespaces, by the name of nsenter's option; ``user`` comes first."""

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment of its ranks."""
        return {"GLOO_SOCKET_IFNAME": "eth0", "SWTRACE_DIR": str(self.rings)}

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of ``swtrace`` on this host."""
        return environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tui'}", SWTRACE_DIR=str(self.rings))

    def command(self, *command: str | Path) -> list[str]:
        """Return what runs a command on this host, in a process that ends with the caller's."""
        entered = [f"--{name}={path}" for name, path in self.namespaces.items()]
        ending = ["setpriv", "--pdeathsig", "KILL", "--"]
        return ["nsenter", "--preserve-credentials", *entered, *ending, *map(str, command)]

    def run(self, *command: str | Path) -> str:
        """Run a command on this host to its end, and return what it prints; fail if it fails."""
        done = subprocess.run(
            self.command(*command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
        assert done.returncode == 0, done.stderr or done.stdout
        return done.stdout

    def enter(self) -> None:
        """Move this process, which must have one thread, to the host."""
        library = ctypes.CDLL(None, use_errno=True)
        opened = [os.open(path, os.O_RDONLY) for path in self.namespaces.values()]
        for descriptor in opened:
            if library.setns(descriptor, 0):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.name}: {os.strerror(ctypes.get_errno())}")
            os.close(descriptor)


@dataclass(frozen=True)
class Delay:
    """One-way delays of a host's link, in seconds."""

    towards_s: float = 0.0
    back_s: float = 0.0


@contextmanager
def hosts(folder: Path, ahead_s: Sequence[int], delays: Mapping[int, Delay] | None = None) -> Iterator[list[Host]]:
    """Make hosts, connect them, and remove them at the end.

    Args:
        folder: Where each host's rings are.
        ahead_s: By host: how far its clock is ahead of this machine's.
        delays: By index of a host: the delay of its link. The other links have none.
    """
    with ExitStack() as stack:
        bridge = stack.enter_context(_bridge(folder))
        made = [stack.enter_context(_host(bridge, index, ahead)) for index, ahead in enumerate(ahead_s)]
        for index, host in enumerate(made):
            stack.enter_context(_linked(bridge, f"to-{host.name}", host, (delays or {}).get(index)))
        yield made


@contextmanager
def daemons(hosts: Sequence[Host]) -> Iterator[list[str]]:
    """Run a daemon over each host's rings, and return their addresses. Kill them at the end."""
    with ExitStack() as stack:
        started = [stack.enter_context(_daemon(host, PORT, "--dir", str(host.rings))) for host in hosts]
        yield [served_url(process) for process in started]


@contextmanager
def watching_daemon(host: Host, watched: Sequence[str]) -> Iterator[str]:
    """Run a daemon on a host that watches every step of others, and return its address. Kill it at the end."""
    with _daemon(host, PORT + 1, "--watch", ",".join(watched), "--watch-every", "1") as process:
        yield served_url(process)


@contextmanager
def _daemon(host: Host, port: int, *what: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        host.command(
            *(sys.executable, "-m", "swtrace", "daemon", "--json"), *("--listen", f"{host.address}:{port}"), *what
        ),
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tui'}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=patience())


@contextmanager
def _bridge(folder: Path) -> Iterator[Host]:
    """Make the network between the hosts, in the user namespace of all of them."""
    with _held("unshare", "--user", "--map-root-user", "--net") as pid:
        bridge = Host("bridge", "", 0, folder, {"user": f"/proc/{pid}/ns/user", "net": f"/proc/{pid}/ns/net"})
        bridge.run("ip", "link", "add", "bridge", "type", "bridge")
        bridge.run("ip", "link", "set", "bridge", "up", "mtu", str(MTU))
        yield bridge


@contextmanager
def _host(bridge: Host, index: int, ahead_s: int) -> Iterator[Host]:
    """Make a host without a link."""
    user = bridge.namespaces["user"]
    with _held(
        *("nsenter", "--preserve-credentials", f"--user={user}"),
        *("unshare", "--net", "--uts", "--time", "--monotonic", str(ahead_s), "--fork", "--kill-child"),
    ) as pid:
        name = f"host-{'abcdefgh'[index]}"
        namespaces = {"user": user, "net": "net", "uts": "uts", "time": "time_for_children"}
        host = Host(
            name=name,
            address=f"10.77.0.{index + 1}",
            ahead_ns=ahead_s * 10**9,
            rings=bridge.rings / name,
            namespaces={
                each: path if each == "user" else f"/proc/{pid}/ns/{path}" for each, path in namespaces.items()
            },
        )
        host.rings.mkdir()
        host.run(sys.executable, "-c", f"import socket; socket.sethostname({name!r})")
        yield host


@contextmanager
def _linked(bridge: Host, port: str, host: Host, delay: Delay | None) -> Iterator[None]:
    """Connect a host to a port of the bridge."""
    with _delayed(bridge, port, host, delay) if delay else nullcontext():
        if delay is None:
            there = ("peer", "name", "eth0", "netns", host.namespaces["net"])
            bridge.run("ip", "link", "add", port, "type", "veth", *there)
        bridge.run("ip", "link", "set", port, "up", "mtu", str(MTU), "master", "bridge")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up", "mtu", str(MTU))
        host.run("ip", "link", "set", "lo", "up")
        yield


@contextmanager
def _delayed(bridge: Host, port: str, host: Host, delay: Delay) -> Iterator[None]:
    """Make both ends of a link that delays packets."""
    ends = (bridge.namespaces["net"], port, str(delay.towards_s), host.namespaces["net"], "eth0", str(delay.back_s))
    with subprocess.Popen(
        bridge.command(sys.executable, "-m", "tests.support.delayed_link", *ends),
        env=bridge.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the delayed link ended"
            yield
        finally:
            process.kill()


@contextmanager
def _held(*command: str) -> Iterator[int]:
    """Keep the namespaces that a command makes, and return the pid by which /proc knows them."""
    with subprocess.Popen(
        [*command, *_HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, process.communicate(timeout=patience())[1]
            yield process.pid
        finally:
            process.stdin.close()


def _are_possible() -> bool:
    """Return whether this user can make such hosts."""
    if not all(map(shutil.which, ("ip", "nsenter", "setpriv", "unshare"))):
        return False
    command = ["unshare", "--user", "--map-root-user", "--net", "--uts", "--time", "--monotonic", "1", "--fork"]
    links = "ip link add type veth && ip link add type bridge"
    return subprocess.run([*command, "sh", "-c", links], capture_output=True, check=False).returncode == 0


needs_delayed_links = pytest.mark.skipif(
    not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="needs /dev/net/tun, which this user may open"
)
needs_hosts = pytest.mark.skipif(
    not _are_possible(),
    reason="needs iproute2, and a kernel that lets this user make user, network and time namespaces",
)
