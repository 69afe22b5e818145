"""A series that is only observed: what it records, and that it leaves the layers alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swtrace.ledger.facts import Outcome
from swtrace.series import Series
from swtrace.series.unshared import UnsharedOnDevice
from swtrace.spans.step_spans import transfers, waits
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.observed_stack import ALONE, LAYERS, OBSERVE, WIDTH, Observed, observed_stack

DURATIONS = Durations.even(LAYERS, before=20_000, linear=30_000, transfer=70_000)


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    """Return a stack whose series is post-processed."""
    with observed_stack(tmp_path) as stack:
        yield stack


def test_a_step_records_when_each_layer_and_its_linear_begin(observed: Observed) -> None:
    """In the order of the forward. Nothing is sent, received or waited for; every layer is the rank's own."""
    observed.steps(8)
    series, steps = observed.facts()
    assert [step.step for step in steps] == [0, 1, 2, 3]
    for step in steps:
        instants = np.stack((step.issued_ns[0], step.wait_begin_ns[0]), axis=1).reshape(-1)
        assert (np.diff(instants) > 0).all()
        assert step.begin_ns[0] <= step.arrival_ns[0] <= instants[0]
        assert instants[-1] <= step.end_ns[0]
        assert (step.layer_ns[0, :-1] == np.diff(step.issued_ns[0])).all()
        assert not np.any((step.receiver, transfers(step), waits(step)))
    (rank,) = series.ranks
    moved = rank.totals.sent, rank.totals.received, rank.totals.bytes
    assert moved == (0, 0, 0)
    assert (rank.totals.waits[Outcome.OWN], rank.totals.steps) == (4 * LAYERS, 8)
    assert (rank.recent.stall_ratio, rank.last_stall_ns, rank.effective_prefetch_step) == (None, None, None)
    assert rank.held_bytes == rank.info.replicated_bytes == LAYERS * (WIDTH + 1) * WIDTH * 4


def test_layers_stay_as_they_are(observed: Observed) -> None:
    """They can be loaded, written, converted, copied and pickled while the series runs, and trained."""
    layers: Any = observed.layers
    with observed.series.step():
        observed.forward(torch.ones(1, WIDTH)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(layer.weight.grad is not None for layer in layers)
    layers.load_state_dict({name: torch.zeros_like(value) for name, value in layers.state_dict().items()})
    with torch.no_grad():
        layers[0].weight.data = torch.eye(WIDTH)
        layers[1].weight.mul_(2)
    for copied in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):  # noqa: S301 (made here)
        assert torch.equal(copied[0](torch.ones(1, WIDTH)), torch.ones(1, WIDTH))
    layers.double()
    with observed.series.step():
        observed.forward(torch.ones(1, WIDTH, dtype=torch.float64))
    assert observed.series.statistics().steps == 2


def twice(observed: Observed) -> None:
    observed.series.reach(0)
    observed.series.reach(0)


def backwards(observed: Observed) -> None:
    for index in reversed(range(LAYERS)):
        observed.series.reach(index)
        observed.layers[index](torch.ones(1, WIDTH))


def after_close(observed: Observed) -> None:
    observed.series.close()
    observed.forward(torch.ones(1, WIDTH))


@pytest.mark.parametrize("forward", [twice, backwards, after_close])
def test_no_order_of_calls_is_an_error(observed: Observed, forward: Callable[[Observed], None]) -> None:
    """Unlike in a shared series, no weight depends on it."""
    forward(observed)


def test_a_forward_runs_before_the_series_is_post_processed() -> None:
    """It is not recorded."""
    series, layer = Series("s", ALONE, 0, 1, settings=OBSERVE), nn.Linear(WIDTH, WIDTH)
    series.register(0, layer)
    series.reach(0)
    assert layer(torch.ones(1, WIDTH)).shape == (1, WIDTH)


class OnDevice(Program):
    """The program of the device's tests, observed."""

    def _connect(self, rank: int, ranks: int) -> tuple[Any, UnsharedOnDevice]:
        mover, _ = super()._connect(rank, ranks)
        return mover, UnsharedOnDevice(self.rig.device, ALONE, len(self.contents))


def test_on_a_device_its_clock_times_the_layers(tmp_path: Path) -> None:
    """In eager steps by events, in replayed graphs by stamps; the durations are those of the device's work."""
    program = OnDevice(SimulatedRig(SimulatedDevice(call_ns=100)), tmp_path, DURATIONS, ranks=1, settings=OBSERVE)
    program.eager(3)
    program.capture()
    program.replay(3)
    program.rig.catch_up()
    program.close()
    steps = program.facts()
    assert [step.step for step in steps] == list(range(6))
    for step in steps[1:]:
        assert step.layer_ns[0, :-1] == pytest.approx([50_000] * (LAYERS - 1), abs=200)
        assert (step.wait_begin_ns - step.issued_ns)[0] == pytest.approx([20_000] * LAYERS, abs=200)
