"""What lies in memory: whose tensors there are in this process."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from swtrace.series import Series, post_processing
from swtrace.series.ideal import IdealChannel, IdealTransport
from swtrace.series.references import living_modules, referred_to_by_others
from tests.support.stacks import Stack, true_weights

LOOKS = 5


def test_looking_for_modules_disturbs_no_other_thread() -> None:
    """Every living module is found while other threads build tuples, which fails if anything refers to them."""
    mine = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 2))
    stop = threading.Event()
    failures: list[BaseException] = []
    built = 0

    def build() -> None:
        nonlocal built
        try:
            while not stop.is_set():
                assert len(tuple(number for number in range(2000))) == 2000
                built += 1
        except BaseException as failure:  # noqa: BLE001 (it is what the test is about)
            failures.append(failure)

    builders = [threading.Thread(target=build) for _ in range(2)]
    for builder in builders:
        builder.start()
    try:
        for _ in range(LOOKS):
            found = {id(module) for module in living_modules()}
            assert found >= {id(module) for module in mine.modules()}
    finally:
        stop.set()
        for builder in builders:
            builder.join()
    assert not failures
    assert built


def test_another_reference_to_a_tensor_is_noticed_without_a_search() -> None:
    """Only the module refers to its tensors and those of its submodules, until something else does."""
    for alone in (nn.Linear(2, 2), nn.MultiheadAttention(4, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))):
        assert not referred_to_by_others(alone)
        last = list(alone.parameters())[-1]
        assert referred_to_by_others(alone)
        del last
        assert not referred_to_by_others(alone)
    first, tied = nn.Linear(2, 2), nn.Linear(2, 2)
    tied.weight = first.weight
    before = torch.get_rng_state()
    assert referred_to_by_others(first)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers"
    assert referred_to_by_others(tied)


def test_a_series_whose_tensors_nothing_else_refers_to_searches_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for who else holds a layer's tensor goes through all objects of the process: it is the exception."""
    monkeypatch.setattr(post_processing, "living_modules", lambda: pytest.fail("searched"))

    def program(transport: IdealTransport) -> bool:
        series = Series("s", transport.group, 0, 4, transport=transport)
        stack = Stack(series, 0, true_weights(4))
        series.post_process()
        return stack.forward(1)

    assert IdealChannel(2).run(program) == [True, True]
