"""Traced requests reach the facts of their step, and a ring of garbage cannot fill the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from swtrace.ledger.requests import RequestLinks
from swtrace.trace.records import REQUEST, Records
from swtrace.trace.request_link import RequestLink
from swtrace.trace.schema import MOST_REQUESTS
from tests.support.finished_steps import finished_steps
from tests.support.recorded_run import RecordedRun

ONE, TWO = RequestLink(1 << 127 | 1, 1 << 63 | 2), RequestLink(3, 4)


def requests(*links: tuple[int, int, int]) -> Records:
    """Return records of requests: step, trace id, span id."""
    made = np.zeros(len(links), REQUEST)
    for record, (step, trace, span) in zip(made, links, strict=True):
        record["step"], record["trace_high"], record["trace_low"] = step, trace >> 64, trace & ((1 << 64) - 1)
        record["span_id"] = span
    return made


def ranks(count: int, rank: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the group rank of so many records."""
    return np.full(count, rank, np.int64)


def steps(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return step numbers."""
    return np.array(numbers, np.int64)


def test_the_facts_of_a_step_have_its_requests(tmp_path: Path) -> None:
    """Each rank's links are those of its own batch in that step, and nothing else about the step changes."""
    run = RecordedRun(tmp_path)
    run.write(1)
    run.links = (ONE, TWO)
    run.write(1)
    run.links = (TWO,)
    run.write_rank(0, 2)
    run.links = ()
    run.write_rank(1, 2)
    run.close()
    before, both, one = finished_steps(tmp_path)
    assert (before.links, both.links, one.links) == (((), ()), ((ONE, TWO), (ONE, TWO)), ((TWO,), ()))
    assert both.complete
    assert not both.partial


def test_links_are_taken_once_and_by_wrapped_number() -> None:
    """A step number is recorded modulo 2**32, and a step is finished once."""
    links = RequestLinks(2)
    links.add(requests((3, *ONE)), ranks(1, 1))
    step = (1 << 32) + 3
    assert links.take(steps(step - 1, step)) == [((), ()), ((), (ONE,))]
    assert links.take(steps(step)) == [((), ())]


def test_invalid_and_surplus_requests_are_dropped() -> None:
    """Ids of 0 are not valid, and a step has at most so many links per rank."""
    links = RequestLinks(1)
    links.add(requests((0, 0, 5), (0, 5, 0), *((0, 1, span) for span in range(1, 100))), ranks(101))
    (((mine),),) = links.take(steps(0))
    assert mine == tuple((1, span) for span in range(1, MOST_REQUESTS + 1))


def test_steps_that_never_finish_are_forgotten() -> None:
    """The oldest of very many steps make room for newer ones."""
    links = RequestLinks(1)
    for step in range(5000):
        links.add(requests((step, *ONE)), ranks(1))
    kept = [number for number, of_step in enumerate(links.take(steps(*range(5000)))) if of_step[0]]
    assert kept == list(range(5000 - len(kept), 5000))
    assert 64 <= len(kept) < 2000
