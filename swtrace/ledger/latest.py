"""Facts of the last step that each rank of a series ended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.ledger.step import Steps
from swtrace.trace.records import TRANSFER
from swtrace.trace.schema import TransferFlag

_NONE = -1


class Latest:
    """The last finished step of each rank.

    Args:
        ranks: Size of the group.
        prefetch_step: k.
    """

    def __init__(self, ranks: int, prefetch_step: int) -> None:
        self._prefetch_step = prefetch_step
        self._step = np.full(ranks, _NONE, np.int64)
        self._stall_ns = np.full(ranks, _NONE, np.int64)
        self._effective = np.full(ranks, _NONE, np.int64)
        self._operations_ahead = np.zeros(ranks, np.int64)

    def forget(self, rank: int) -> None:
        """Forget a rank."""
        self._operations_ahead[rank] = 0
        self._step[rank] = self._stall_ns[rank] = self._effective[rank] = _NONE

    def add(self, steps: Steps) -> None:
        """Add finished steps."""
        block = steps.block
        rows, ranks = at = _last(block.whole)
        self._stall_ns[ranks] = steps.stall_ns[at].sum(axis=1)
        rows, ranks = at = _last(block.ended)
        self._step[ranks] = block.step[rows]
        issued = block.present[at] & ((block.flags[at] & TransferFlag.PREFILLED) == 0)
        layers = issued.shape[1]
        records = block.cells[rows, ranks, :-1].view(TRANSFER)
        reached = records["reach_position"]
        smallest = np.where(issued, (np.arange(layers) - reached.astype(np.int64)) % layers, layers).min(axis=1)
        known = smallest < layers
        self._effective[ranks[known]] = smallest[known]
        last = issued[:, -1]
        expected = block.step[rows] * layers + layers - 1 - self._prefetch_step
        ahead = (records["operation"][:, -1].astype(np.int64) - expected).astype(np.int32)  # both are modulo 2**32
        self._operations_ahead[ranks[last]] = ahead[last]

    def step(self, rank: int) -> int | None:
        """Return the number of the rank's last step; None before the first."""
        step = int(self._step[rank])
        return None if step == _NONE else step

    def stall_ns(self, rank: int) -> int | None:
        """Return the stall of the rank's last step without missing records; None before the first."""
        stall_ns = int(self._stall_ns[rank])
        return None if stall_ns == _NONE else stall_ns

    def operations_ahead(self, rank: int) -> int:
        """Return by how much a rank's last broadcast has a higher number than its step says."""
        return int(self._operations_ahead[rank])

    def effective_prefetch_step(self, rank: int) -> int | None:
        """Return the smallest number of positions between reach and layer; None before the first broadcast."""
        effective = int(self._effective[rank])
        return None if effective == _NONE else effective


def _last(these: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the last row of each rank that is set in ``[step, rank]``: rows, and ranks."""
    ranks = np.flatnonzero(these.any(axis=0))
    return len(these) - 1 - these[::-1].argmax(axis=0)[ranks], ranks
