"""The connections of a demo rank to the others, which can be made slow.

gloo keeps one TCP connection per pair of ranks and communicator. Linux can pace what is sent on a connection
(``SO_MAX_PACING_RATE``), also over loopback and without privileges. So a transfer takes longer, and nothing else does.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_SO_MAX_PACING_RATE = 47
_RATE_BYTES = 8
_Ends = tuple[Any, Any]
"""The addresses of a connection's ends: mine, the peer's."""


class Links:
    """The connections of this process, by the rank at the other end."""

    def __init__(self, connections: Mapping[int, Sequence[socket.socket]]) -> None:
        """Take over sockets; :meth:`find` finds them."""
        self._connections = connections

    @classmethod
    def find(cls, rank: int) -> Links:
        """Find the connections to all other ranks of torch's world. All ranks must call this together."""
        import torch.distributed as dist

        mine = {_ends(each): each for each in _connections()}
        theirs: list[set[_Ends]] = [set() for _ in range(dist.get_world_size())]
        dist.all_gather_object(theirs, set(mine))
        return cls(
            {
                peer: [each for (here, there), each in mine.items() if (there, here) in ends]
                for peer, ends in enumerate(theirs)
                if peer != rank
            }
        )

    @property
    def peers(self) -> Collection[int]:
        """The ranks at the other ends."""
        return self._connections.keys()

    @contextmanager
    def paced(self, to: Collection[int], bytes_per_s: float) -> Iterator[None]:
        """Send at most this fast on each connection to some ranks."""
        with ExitStack() as stack:
            for each in (each for peer in to for each in self._connections.get(peer, ())):
                before = each.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _RATE_BYTES)
                rate = round(bytes_per_s).to_bytes(_RATE_BYTES, "little")
                each.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
                stack.callback(each.setsockopt, socket.SOL_SOCKET, _SO_MAX_PACING_RATE, before)
            yield


NO_LINKS = Links({})


def _connections() -> Iterator[socket.socket]:
    """Yield copies of this process's TCP connections."""
    for entry in Path("/proc/self/fd").iterdir():
        copy = -1
        try:
            copy = os.dup(int(entry.name))
            connection = socket.socket(fileno=copy)
        except OSError:  # closed by now, or no socket
            if copy >= 0:
                os.close(copy)
            continue
        if _is_connected(connection):
            yield connection
        else:
            connection.close()


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return connection.family in {socket.AF_INET, socket.AF_INET6}


def _ends(connection: socket.socket) -> _Ends:
    return connection.getsockname(), connection.getpeername()
