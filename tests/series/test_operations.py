"""Operators find their series by number, and refuse what would not wait for a weight.

That compiled forwards compute what resident weights compute is tested in ``tests/scenarios/series/test_compiled.py``.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from swtrace.errors import OrderError
from swtrace.series import operations


class Known:
    """What the operators see of a series."""

    where = "series 's', rank 0"
    observes = False

    def __init__(self, error: Exception | None = None) -> None:
        self.closed = False
        self.reached: list[int] = []
        self.waited: list[int] = []
        self.reach_from_graph = self.reached.append
        self.wait = self.waited.append
        self._error = error

    def close(self) -> None:
        """Close it, even if that raises."""
        self.closed = True
        if self._error is not None:
            raise self._error


@pytest.fixture(autouse=True)
def _own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's series be the only ones of the process."""
    monkeypatch.setattr(operations, "_numbered", [])
    monkeypatch.setattr(operations, "_arrived", [])


def numbered(series: Any) -> int:
    """Number a series."""
    return operations.number(series)


def test_an_operator_calls_the_series_of_its_number() -> None:
    """And the layer that a forward last reached is known, without the series."""
    first, second = Known(), Known()
    assert (numbered(first), numbered(second)) == (0, 1)
    assert operations.arrived(1) == -1
    operations.reach(torch.zeros(1), 1, 7)
    operations.wait(torch.zeros(1), 0, 5)
    assert (first.reached, first.waited, second.reached, second.waited) == ([], [5], [7], [])
    assert (operations.arrived(0), operations.arrived(1)) == (-1, 7)


def test_compiled_code_does_not_keep_its_series_alive() -> None:
    """Once the series is gone, or its number was never given, the operator says so."""
    series = Known()
    numbered(series)
    del series
    gc.collect()
    for number in (0, 1):
        with pytest.raises(OrderError, match=f"series number {number}: used by compiled code after the series was"):
            operations.wait(torch.zeros(1), number, 0)


def test_forgetting_closes_every_series_although_one_raises() -> None:
    """The numbers start again at 0, as in the process that will load the compiled code from a cache."""
    series = [Known(), Known(ValueError("cannot close")), Known()]
    for one in series:
        numbered(one)
    with pytest.raises(ValueError, match="cannot close"):
        operations.forget()
    assert [one.closed for one in series] == [True] * 3
    assert operations.numbered() == ()
    assert numbered(Known()) == 0


@pytest.mark.parametrize("operator", [operations.reach, operations.wait])
def test_inductors_freezing_is_refused(operator: Any) -> None:
    """It would copy the weights into the compiled code; the error names the setting."""
    series = Known()
    number = numbered(series)
    with FakeTensorMode():
        operator(torch.zeros(1), number, 4)
        with (
            inductor.patch(freezing=True),
            pytest.raises(OrderError, match=r"series 's', rank 0, layer 4: torch\._inductor\.config\.freezing copies"),
        ):
            operator(torch.zeros(1), number, 4)
    assert (series.reached, series.waited) == ([], [])


def test_recording_of_operations_is_noticed() -> None:
    """As by make_fx, whose graph would lack the waits."""
    seen: list[bool] = []

    def program(x: Tensor) -> Tensor:
        seen.append(operations.records_operations())
        return x + 1

    program(torch.zeros(1))
    make_fx(program)(torch.zeros(1))
    assert seen == [False, True]
