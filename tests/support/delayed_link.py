"""A link between two network namespaces that delays packets, for kernels without netem.

``python -m tests.support.delayed_link NAMESPACE DEVICE DELAY NAMESPACE DEVICE DELAY`` makes a TAP device in each
namespace and forwards what is sent to one to the other. Each delay, in seconds, is that of packets read from the device
before it. Prints a line when both devices exist.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_PR_SET_TIMERSLACK = 29
_PACKET_BYTES = 1 << 17
_AT_ONCE = 64


@dataclass
class Direction:
    """Packets on their way from one device to the other."""

    source: int
    target: int
    delay_ns: int
    packets: deque[tuple[int, bytes]] = field(default_factory=deque)
    """When to write each one, and its bytes."""

    def read(self) -> None:
        """Read the packets that the source has now."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self.source, _PACKET_BYTES)
            except BlockingIOError:
                return
            self.packets.append((time.monotonic_ns() + self.delay_ns, packet))

    def write(self) -> None:
        """Write the packets whose time has come. One that cannot be written is lost, as on any network."""
        while self.packets and self.packets[0][0] <= time.monotonic_ns():
            try:
                os.write(self.target, self.packets.popleft()[1])
            except OSError:
                continue


def tap(namespace: str, name: str) -> int:
    """Make a TAP device in a network namespace, and return its descriptor."""
    library = ctypes.CDLL(None, use_errno=True)
    there = os.open(namespace, os.O_RDONLY)
    if library.setns(there, 0):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
    os.close(there)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def main() -> None:
    """Forward packets until killed."""
    one_namespace, one_name, one_delay, other_namespace, other_name, other_delay = sys.argv[1:]
    one, other = tap(one_namespace, one_name), tap(other_namespace, other_name)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    directions = {
        one: Direction(one, other, round(float(one_delay) * 1e9)),
        other: Direction(other, one, round(float(other_delay) * 1e9)),
    }
    sys.stdout.write("\n")
    sys.stdout.flush()
    while True:
        due = [direction.packets[0][0] for direction in directions.values() if direction.packets]
        left_s = max(0.0, (min(due) - time.monotonic_ns()) * 1e-9) if due else None
        readable, _, _ = select.select(list(directions), [], [], left_s)
        for device in readable:
            directions[device].read()
        for direction in directions.values():
            direction.write()


if __name__ == "__main__":
    main()
