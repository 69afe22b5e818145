"""Which ranks of the world run with swtrace, known before any rank waits for one that does not.

A rank without ``SWTRACE=1`` does nothing, so it cannot announce that. But all ranks make vLLM's groups, and no
group is complete before all ranks have begun to make it. So a rank with swtrace writes a key into the world's
store before it makes a group. A rank whose key is missing once a group exists runs without swtrace.
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
    """Return the ranks of the world that run without swtrace. Empty if this rank could not announce itself."""
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
