"""Which ranks of a torch world run with swtrace, and in which processes.

A rank announces itself in the world's store, which takes no part of the other ranks: in vLLM before it makes a group,
otherwise when it makes a series. So its peers can name it, even if it dies before it has a ring.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import distributed as dist

from swtrace.trace.liveness import own_process


def world_store() -> Any:
    """Return the store that all ranks of the world share."""
    return dist.group.WORLD.get_group_store()  # type: ignore[union-attr]


def announce() -> None:
    """Say that this rank of the world runs with swtrace, and in which process."""
    world_store().set(_key(dist.get_rank()), own_process())


def announced(rank: int) -> str:
    """Return the name of a rank's process; empty if the rank has not announced itself."""
    store, key = world_store(), _key(rank)
    if not store.check([key]):
        return ""
    name: bytes = store.get(key)
    return name.decode()


def give_up() -> None:
    """Say that this rank will end because it lost another one, so that no peer takes it for the one that died."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # the store may be gone with the lost rank
            world_store().set(_key(dist.get_rank(), "gave-up"), "")


def gave_up(rank: int) -> bool:
    """Return whether a rank is known to have ended because it lost another one."""
    with suppress(RuntimeError):
        given_up: bool = world_store().check([_key(rank, "gave-up")])
        return given_up
    return False


def _key(rank: int, what: str = "present") -> str:
    return f"swtrace/{what}/{rank}"
