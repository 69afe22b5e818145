"""The runtime of shared-weight series: each layer's weight is stored on one rank and broadcast to the others in time.

:class:`Series` is the object API. The functions keep the names of the original implementation, so that
code written for it can switch by changing an import.
"""

from __future__ import annotations

from swtrace.series.functions import (
    post_process_after_loading_for_shared_weight_series,
    reach_layer_for_shared_weight_series,
    register_layer_to_shared_weight_series,
)
from swtrace.series.group import Group, RankGroup
from swtrace.series.series import Series, SeriesStatistics

__all__ = [
    "Group",
    "RankGroup",
    "Series",
    "SeriesStatistics",
    "post_process_after_loading_for_shared_weight_series",
    "reach_layer_for_shared_weight_series",
    "register_layer_to_shared_weight_series",
]
