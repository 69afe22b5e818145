"""The three functions of the original implementation, with its names and arguments, on top of :class:`Series`.

Series are identified by name. The original's arguments have no place for tracing, the window policy and the
layers to share, so these come from the environment (``SWTRACE=1``, ``SWTRACE_WINDOWS``, ``SWTRACE_SHARE``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtrace.errors import RegistrationError
from swtrace.series import recording
from swtrace.series.series import Series
from swtrace.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from swtrace.series.group import Group

_series: dict[str, Series] = {}
_layers: dict[int, tuple[Series, int, nn.Module]] = {}
"""By the layer's ``id``. The layer is held too, so that no other object gets the same ``id``."""


def register_layer_to_shared_weight_series(
    series_name: str,
    group: Group,
    start_layer: int,
    end_layer: int,
    layer_idx: int,
    layer: nn.Module,
    prefetch_step: int = 1,
) -> None:
    """Register a linear in the series ``series_name``; the first layer creates the series.

    Args:
        series_name: the same on all ranks.
        group: the ranks that share the series.
        start_layer: absolute index of the series' first layer.
        end_layer: one past its last.
        layer_idx: absolute index of this layer.
        layer: the linear, constructed but not loaded.
        prefetch_step: how many layers ahead a broadcast starts.

    Raises:
        RegistrationError: the layer does not fit, or an earlier one described the series differently.
    """
    series = _series.get(series_name)
    if series is None:
        settings = Settings.from_environment()
        series = Series(
            series_name,
            group,
            start_layer,
            end_layer,
            layers=settings.share.layers(start_layer, end_layer),
            prefetch_step=prefetch_step,
            windows=settings.windows,
            recorder=recording.process_recorder if settings.enabled else None,
            settings=settings,
        )
        _series[series_name] = series
    elif not series.described_by(group, start_layer, end_layer, prefetch_step):
        raise RegistrationError(
            f"series {series_name!r}, layer {layer_idx}: registered with a different group, range or prefetch step "
            f"than the first layer"
        )
    series.register(layer_idx, layer)
    _layers[id(layer)] = (series, layer_idx, layer)


def post_process_after_loading_for_shared_weight_series(layer: nn.Module) -> None:
    """Post-process the whole series of ``layer``, unless that has been done; collective."""
    series, _, _ = _registered(layer)
    if not series.post_processed:
        series.post_process()


def reach_layer_for_shared_weight_series(layer: nn.Module) -> None:
    """Start the broadcast of the layer ``prefetch_step`` ahead, because the forward has arrived at ``layer``."""
    series, layer_idx, _ = _registered(layer)
    series.reach(layer_idx)


def series_of(layer: nn.Module) -> Series:
    """Return the series that ``layer`` was registered in."""
    return _registered(layer)[0]


def close_all() -> None:
    """Close and forget all series created by these functions."""
    for series in _series.values():
        series.close()
    _series.clear()
    _layers.clear()


def _registered(layer: nn.Module) -> tuple[Series, int, nn.Module]:
    entry = _layers.get(id(layer))
    if entry is None:
        raise RegistrationError(f"{type(layer).__name__} at {id(layer):#x} was never registered in a series")
    return entry
