"""Which settings are worth predicting: every combination of a few values per setting that a series accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from swtrace.ledger.planning.prediction import UNSHARED, Candidate
from swtrace.share import ALL_LAYERS, Share

SHARES = (ALL_LAYERS, *map(Share, ("3/4", "2/3", "1/2", "1/3", "1/4")))
PREFETCH_STEPS = tuple(range(1, 9))


@dataclass(frozen=True, slots=True)
class Axes:
    """The values to combine."""

    transports: Sequence[str]
    ranks: int
    shares: Sequence[Share] = SHARES
    prefetch_steps: Sequence[int] = PREFETCH_STEPS
    windows: Sequence[str] = ("static",)

    def candidates(self, start_layer: int, stack_layers: int) -> Iterator[Candidate]:
        """Yield every combination that fits a stack of decoder layers, largest share first, then no sharing.

        Shares that select the same layers count once. A prefetch step must be at most the number of shared layers
        minus 2.
        """
        seen = set()
        for share in self.shares:
            layers = share.layers(start_layer, start_layer + stack_layers)
            if not layers or layers in seen:
                continue
            seen.add(layers)
            for transport, windows, k in product(self.transports, self.windows, self.prefetch_steps):
                if k <= len(layers) - 2:
                    yield Candidate(share, k, transport, windows, self.ranks)
        yield Candidate(UNSHARED, 0, self.transports[0], self.windows[0], self.ranks)
