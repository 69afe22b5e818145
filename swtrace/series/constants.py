"""The description of a series on one rank: fixed before anything is allocated or communicated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace import placement
from swtrace.errors import RegistrationError, SettingsError
from swtrace.trace.schema import MAX_GROUP, MAX_POSITIONS

if TYPE_CHECKING:
    from swtrace.series.group import Group

POLICIES = ("rolling", "static")


@dataclass(frozen=True, slots=True)
class SeriesConstants:
    """The constants of a series on one rank."""

    name: str
    group: Group
    ranks: tuple[int, ...]
    """The run's rank numbers; the transport uses torch's."""
    start_layer: int
    stack_layers: int
    """Decoder layers from ``start_layer`` on, shared or not."""
    layers: tuple[int, ...]
    """Absolute indexes of the shared ones, in ascending order."""
    prefetch_step: int
    windows: str
    """``rolling`` or ``static``."""
    tagged: bool
    """Whether windows carry their layer's tag, and readers check it."""
    time_every: int
    """One step in so many is timed; 0 for the default of the transport's clock."""
    observed: bool = False
    """Whether nothing is shared: every rank stores all layers."""

    @property
    def rank(self) -> int:
        """This rank's number in the run."""
        return self.ranks[self.group.rank_in_group]

    @property
    def where(self) -> str:
        """The series and the rank, for errors."""
        return f"series {self.name!r}, rank {self.rank}"

    @property
    def num_layers(self) -> int:
        """Number of shared layers."""
        return len(self.layers)

    @property
    def stack(self) -> range:
        """Absolute indexes of all layers, shared or not."""
        return range(self.start_layer, self.start_layer + self.stack_layers)

    def source(self, layer_idx: int) -> int:
        """Return the group rank that stores a layer: this one if the series is only observed, so that all do."""
        if self.observed:
            return self.group.rank_in_group
        return placement.source_rank(self.start_layer + self.layers.index(layer_idx), self.group.world_size)

    def owns(self, layer_idx: int) -> bool:
        """Return whether this rank stores the layer."""
        return self.source(layer_idx) == self.group.rank_in_group

    def missing(self, registered: Collection[int]) -> tuple[int, ...]:
        """Return the layers that are not among the registered ones."""
        return tuple(layer_idx for layer_idx in self.layers if layer_idx not in registered)

    def check(self) -> None:
        """Check that the constants can form a series.

        Raises:
            RegistrationError: the group, the layers or the prefetch step cannot.
            SettingsError: the window policy is unknown.
        """
        size = self.group.world_size
        if len(self.ranks) != size:
            raise RegistrationError(
                f"series {self.name!r}: run_ranks has length {len(self.ranks)}, but the group's size is {size}"
            )
        where = self.where
        if size < 2 and not self.observed:  # noqa: PLR2004
            raise RegistrationError(f"{where}: a group of {size} rank has nothing to share")
        if self.windows not in POLICIES:
            raise SettingsError(f"{where}: window policy {self.windows!r}: must be one of: auto, {', '.join(POLICIES)}")
        if size > MAX_GROUP or self.stack_layers > MAX_POSITIONS:
            raise RegistrationError(
                f"{where}: {size} ranks and {self.stack_layers} layers exceed the limits of "
                f"{MAX_GROUP} ranks and {MAX_POSITIONS} layers"
            )
        stack = f"[{self.stack.start}, {self.stack.stop})"
        if self.start_layer < 0 or self.stack_layers < (1 if self.observed else 2):
            raise RegistrationError(
                f"{where}: layers {stack} are not a series: it needs at least two layers, numbered from 0"
            )
        if self.layers != tuple(sorted(set(self.layers).intersection(self.stack))):
            shared = ", ".join(map(str, self.layers))
            raise RegistrationError(f"{where}: shared layers {shared}: must be in ascending order and within {stack}")
        if self.num_layers < 2 and not self.observed:  # noqa: PLR2004
            raise RegistrationError(
                f"{where}: {self.num_layers} of the layers {stack} would be shared, but a series needs at least two; "
                f"set SWTRACE_SHARE to a larger part"
            )
        if not self.observed and not 0 <= self.prefetch_step <= self.num_layers - 2:
            raise RegistrationError(
                f"{where}: prefetch step {self.prefetch_step}: must be between 0 and {self.num_layers - 2} "
                f"(number of shared layers - 2); lower SWTRACE_PREFETCH_STEP"
                + (" or set SWTRACE_SHARE to a larger part" if self.num_layers < self.stack_layers else "")
            )
