"""What a block of a probe times, with transfers and computes of known durations."""

from __future__ import annotations

from typing import Any

import pytest

from swtrace.errors import TransportError
from swtrace.series.probing import block
from swtrace.series.probing.block import Beside, Transfers, _covered, stretch


def test_a_stretch_is_what_transfers_cost_the_products_beside_them() -> None:
    """10 ms of products took 13 ms, of which 6 ms were beside transfers: in these, 3 ms of work took twice as long."""
    found = stretch([Beside(6_000_000, 13_000_000, 10_000_000)] * 3)
    assert found is not None
    assert found.p50 == pytest.approx(2.0)
    assert found.p95 == pytest.approx(2.0)


def test_a_stretch_is_unknown_where_transfers_are_short() -> None:
    """A transfer of 20 us in 10 ms of products, whose own noise is larger, says nothing about its effect."""
    assert stretch([Beside(20_000, 10_300_000, 10_000_000)]) is None
    assert stretch([]) is None


class _Ended:
    """A channel whose transfers fail."""

    name = family = "broadcast"
    ready_ns = 0

    def issue(self, *_: object) -> Any:
        return self

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        raise TransportError("the connection was closed by the peer")


def test_a_transfer_that_fails_ends_the_wait_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost rank is an error of the transfer, although nothing ever becomes ready."""
    monkeypatch.setattr(block, "_LOOK_S", 0.01)
    transfers = Transfers(_Ended(), 1, 2, 8)  # type: ignore[arg-type]
    transfers.issue()
    with pytest.raises(TransportError, match="closed by the peer"):
        transfers.wait()


def test_time_with_a_transfer_under_way_counts_once_where_transfers_overlap() -> None:
    """[0, 10) and [5, 20) and [30, 40) cover 30 of the 50 ns, and 12 of those from 8 to 20."""
    transfers = Transfers(_Ended(), 1, 1, 3)  # type: ignore[arg-type]
    transfers.issued_ns, transfers.ready_ns = [0, 5, 30], [10, 20, 40]
    assert _covered(transfers, 0, 50) == 30
    assert _covered(transfers, 8, 20) == 12
