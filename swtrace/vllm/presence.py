"""Which ranks of the world run with swtrace, known before anybody waits for one that does not.

A rank without ``SWTRACE=1`` does nothing at all, so it cannot say so. But every rank, with or without, makes vLLM's
groups, and none has made one before all have begun to. So a rank with swtrace writes its name into the
world's store before it makes a group; whose name is not there when a group is made runs without.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def announcing(init: Callable[..., None]) -> Callable[..., None]:
    """Return a ``GroupCoordinator.__init__`` that announces this rank first."""

    @functools.wraps(init)
    def announcing_init(self: Any, *args: Any, **kwargs: Any) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            world_store().set(_key(dist.get_rank()), "")
        init(self, *args, **kwargs)

    return announcing_init


def ranks_without() -> list[int]:
    """Return the ranks of the world that run without swtrace; none where this rank could not announce itself."""
    import torch.distributed as dist

    if not dist.is_initialized() or not world_store().check([_key(dist.get_rank())]):
        return []
    return [rank for rank in range(dist.get_world_size()) if not world_store().check([_key(rank)])]


def _key(rank: int) -> str:
    return f"swtrace/present/{rank}"


def world_store() -> Any:
    """Return the store that all ranks of the world share."""
    import torch.distributed as dist

    return dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
