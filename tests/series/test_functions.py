"""The original implementation's three functions, on top of the series."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from swtrace.errors import RegistrationError
from swtrace.series import (
    RankGroup,
    post_process_after_loading_for_shared_weight_series,
    reach_layer_for_shared_weight_series,
    register_layer_to_shared_weight_series,
)
from swtrace.series.functions import close_all, series_of
from tests.support.ranks import run_ranks
from tests.support.stacks import load, plain_linear, true_weights

LAYERS = 5


def use_as_the_original(_rank: int) -> tuple[bool, str, str, int]:
    """Register, post-process once per layer, reach and compute, through the functions alone."""
    group = RankGroup.world()
    weights = true_weights(LAYERS)
    layers = [plain_linear(position) for position in range(LAYERS)]
    for position, layer in enumerate(layers):
        register_layer_to_shared_weight_series("o_proj", group, 3, 3 + LAYERS, 3 + position, layer, prefetch_step=2)
        load(nn.Module.get_parameter(layer, "weight"), weights[position])
    for layer in layers:
        post_process_after_loading_for_shared_weight_series(layer)
    x = torch.ones(1, weights[0].shape[1])
    equal = True
    for _ in range(3):
        for layer, weight in zip(layers, weights, strict=True):
            reach_layer_for_shared_weight_series(layer)
            equal &= torch.equal(layer(x), nn.functional.linear(x, weight))
    info = series_of(layers[0]).info
    close_all()
    rings = len(list(Path(os.environ["SWTRACE_DIR"]).glob("*.swt")))
    return equal, info.windows, info.extent, rings


@pytest.mark.parametrize(
    ("windows", "policy", "share", "extent"),
    [("", "static", "all", "layers 3-7"), ("rolling", "rolling", "layers:4-7", "4 of layers 3-7 shared")],
)
def test_code_written_against_the_original_can_switch(
    tmp_path: Path, windows: str, policy: str, share: str, extent: str
) -> None:
    """Same names and arguments, right results; the environment sets policy, tracing and the layers to share."""
    environment = {"SWTRACE_DIR": str(tmp_path), "SWTRACE": "1", "SWTRACE_WINDOWS": windows, "SWTRACE_SHARE": share}
    assert run_ranks(2, use_as_the_original, environment=environment) == [(True, policy, extent, 2)] * 2


def test_without_the_switch_nothing_is_recorded(tmp_path: Path) -> None:
    """Unless SWTRACE=1, the functions share weights and write no ring."""
    environment = {"SWTRACE_DIR": str(tmp_path), "SWTRACE": ""}
    assert run_ranks(2, use_as_the_original, environment=environment) == [(True, "static", "layers 3-7", 0)] * 2


def test_a_series_is_described_the_same_by_all_its_layers() -> None:
    """A second layer under another range or prefetch step is refused; an unknown layer has no series."""
    group = RankGroup((0, 1), 0)
    try:
        register_layer_to_shared_weight_series("s", group, 0, 4, 0, plain_linear(0))
        with pytest.raises(
            RegistrationError, match=r"series 's', layer 1: registered with a different group, range or"
        ):
            register_layer_to_shared_weight_series("s", group, 0, 4, 1, plain_linear(1), prefetch_step=2)
        with pytest.raises(RegistrationError, match=r"Linear at 0x\w+ was never registered"):
            reach_layer_for_shared_weight_series(plain_linear(2))
    finally:
        close_all()
