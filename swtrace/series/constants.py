"""What a series is, on one rank: known before anything is allocated or anybody is talked to, and never changed."""

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
    """A series on one rank, as it was described."""

    name: str
    group: Group
    ranks: tuple[int, ...]
    """In the run's numbers; torch's are the transport's business."""
    start_layer: int
    num_layers: int
    prefetch_step: int
    windows: str
    """``rolling`` or ``static``."""
    tagged: bool
    """Windows carry the tag of their layer, and readers look at it."""
    time_every: int
    """How many steps there are for each timed one; 0: what suits the clock."""

    @property
    def rank(self) -> int:
        """This rank, in the run's numbers."""
        return self.ranks[self.group.rank_in_group]

    @property
    def where(self) -> str:
        """The series and the rank, for errors."""
        return f"series {self.name!r}, rank {self.rank}"

    @property
    def layers(self) -> range:
        """Absolute indexes of the layers."""
        return range(self.start_layer, self.start_layer + self.num_layers)

    def owns(self, layer_idx: int) -> bool:
        """Whether this rank is the layer's source."""
        return plan.source_rank(layer_idx, self.group.world_size) == self.group.rank_in_group

    def missing(self, registered: Collection[int]) -> tuple[int, ...]:
        """Return the layers that are not among the registered ones."""
        return tuple(layer_idx for layer_idx in self.layers if layer_idx not in registered)

    def check(self) -> None:
        """Raise if there is no such series.

        Raises:
            RegistrationError: of that group, these layers or that prefetch step.
            SettingsError: of that window policy.
        """
        size = self.group.world_size
        if len(self.ranks) != size:
            raise RegistrationError(f"series {self.name!r}: {len(self.ranks)} run ranks for a group of {size}")
        where = self.where
        if size < 2:  # noqa: PLR2004
            raise RegistrationError(f"{where}: a group of {size} rank has nothing to share")
        if self.windows not in POLICIES:
            raise SettingsError(f"{where}: window policy {self.windows!r} is none of auto, {', '.join(POLICIES)}")
        if size > MAX_GROUP or self.num_layers > MAX_POSITIONS:
            raise RegistrationError(f"{where}: {size} ranks and {self.num_layers} layers are too many")
        if self.start_layer < 0 or self.num_layers < 2:  # noqa: PLR2004
            raise RegistrationError(
                f"{where}: layers [{self.start_layer}, {self.start_layer + self.num_layers}) are no series: "
                f"it takes two at least"
            )
        if not 0 <= self.prefetch_step <= self.num_layers - 2:
            raise RegistrationError(
                f"{where}: prefetch step {self.prefetch_step} is not within 0 and {self.num_layers - 2} "
                f"(number of layers - 2); set SWTRACE_PREFETCH_STEP"
            )
