"""The description of a series on one rank: fixed before anything is allocated or communicated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.errors import RegistrationError, SettingsError
from swtrace.series import plan
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
    num_layers: int
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
    def layers(self) -> range:
        """Absolute indexes of the layers."""
        return range(self.start_layer, self.start_layer + self.num_layers)

    def source(self, layer_idx: int) -> int:
        """Return the group rank that stores a layer; of those that do, this one if the series is only observed."""
        return self.group.rank_in_group if self.observed else plan.source_rank(layer_idx, self.group.world_size)

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
        if size > MAX_GROUP or self.num_layers > MAX_POSITIONS:
            raise RegistrationError(
                f"{where}: {size} ranks and {self.num_layers} layers exceed the limits of "
                f"{MAX_GROUP} ranks and {MAX_POSITIONS} layers"
            )
        if self.start_layer < 0 or self.num_layers < (1 if self.observed else 2):
            raise RegistrationError(
                f"{where}: layers [{self.start_layer}, {self.start_layer + self.num_layers}) are not a series: "
                f"it needs at least two layers, numbered from 0"
            )
        if not self.observed and not 0 <= self.prefetch_step <= self.num_layers - 2:
            raise RegistrationError(
                f"{where}: prefetch step {self.prefetch_step}: must be between 0 and {self.num_layers - 2} "
                f"(number of layers - 2); set SWTRACE_PREFETCH_STEP"
            )
