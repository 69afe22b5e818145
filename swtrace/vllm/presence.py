"""Which ranks of the world run with swtrace, known before any rank waits for one that does not.

A rank without ``SWTRACE=1`` does nothing, so it cannot announce that. But all ranks make vLLM's groups, and no
group is complete before all ranks have begun to make it. So a rank with swtrace announces itself before it makes a
group. A rank that has not, once a group exists, runs without swtrace.
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

        from swtrace.series.presence import announce

        if dist.is_initialized():
            announce()
        init(self, *args, **kwargs)

    return announcing_init


def ranks_without() -> list[int]:
    """Return the ranks of the world that run without swtrace. Empty if this rank could not announce itself."""
    import torch.distributed as dist

    from swtrace.series.presence import announced

    if not dist.is_initialized() or not announced(dist.get_rank()):
        return []
    return [rank for rank in range(dist.get_world_size()) if not announced(rank)]
