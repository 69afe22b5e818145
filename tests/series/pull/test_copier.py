"""The copier: in order, without the GIL, and to the end."""

from __future__ import annotations

import threading
import time

import torch

from swtrace.series.pull.copier import HELD, Copier
from swtrace.trace.schema import Observed
from tests.support.patience import eventually


def nothing() -> None:
    """Check nothing."""


def test_copies_are_made_in_order_and_stamped() -> None:
    """Each is ready after the one before; the observer gets the same instant."""
    copier = Copier("copier", nothing)
    origins = [torch.full((1 << 16,), number, dtype=torch.uint8) for number in range(20)]
    buffers = [torch.zeros(1 << 16, dtype=torch.uint8) for _ in origins]
    seen: list[int] = []
    before = time.monotonic_ns()
    operations = [copier.copy(*each, seen.append) for each in zip(buffers, origins, strict=True)]
    for operation in operations:
        operation.wait()
        operation.wait()
    copier.close()
    ready = [operation.ready_ns for operation in operations]
    assert ready == seen == sorted(ready)
    assert before <= ready[0]
    assert ready[-1] <= time.monotonic_ns()
    assert all(operation.done() and operation.observed is Observed.CALLBACK for operation in operations)
    assert all(map(torch.equal, buffers, origins))


def test_close_finishes_what_was_asked_for_and_ends_the_thread() -> None:
    """No copy is under way afterwards."""
    threads = threading.active_count()
    copier = Copier("copier", nothing)
    origin = torch.ones(1 << 22, dtype=torch.uint8)
    operations = [copier.copy(torch.zeros(1 << 22, dtype=torch.uint8), origin, None) for _ in range(8)]
    copier.close()
    assert all(operation.done() for operation in operations)
    assert threading.active_count() == threads


def test_python_runs_on_while_a_copy_is_under_way() -> None:
    """The copy does not hold the GIL: this thread counts meanwhile."""
    copier = Copier("copier", nothing)
    origin = torch.ones(1 << 28, dtype=torch.uint8)
    operation = copier.copy(torch.empty(1 << 28, dtype=torch.uint8), origin, None)
    counted = 0
    while not operation.done():
        counted += 1
    copier.close()
    assert counted > 1000  # with the GIL held it would be a handful


def test_the_copier_looks_around_beside_its_copies() -> None:
    """After the first copy, and then about once a second at most."""
    calls: list[int] = []
    copier = Copier("copier", lambda: calls.append(1))
    origin, buffer = torch.ones(8, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    for _ in range(100):
        copier.copy(buffer, origin, None).wait()
    eventually(lambda: len(calls) > 0, "the copier looked around")
    copier.close()
    assert len(calls) < 100


def test_an_owner_has_nothing_to_wait_for() -> None:
    """Its operation is done, and its ready instant unknown."""
    HELD.wait()
    assert HELD.done()
    assert HELD.ready_ns == 0
    assert HELD.observed is Observed.NEVER
