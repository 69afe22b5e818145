"""The trace context of a request travels from the scheduler's request to the steps of its batch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

from swtrace.trace.request_link import RequestLink
from swtrace.vllm.request_traces import RequestTraces, carrying


@dataclass
class _Request:
    """What a scheduler knows of a request."""

    req_id: str
    trace_headers: dict[str, str] | None = None


@dataclass
class _New:
    """What a worker is sent of a new request."""

    req_id: str

    @classmethod
    def from_request(cls, request: _Request, _blocks: int = 0) -> _New:
        return cls(request.req_id)


@dataclass
class _Schedule:
    """What a worker is sent of a step."""

    scheduled_new_reqs: list[Any] = field(default_factory=list)
    finished_req_ids: set[str] = field(default_factory=set)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)


class _Carrying(_New):
    from_request = carrying(_New.from_request)


def sent(name: str, span: int = 0) -> Any:
    """Return a new request as a worker receives it; traced by this span, or not."""
    headers = {"traceparent": f"00-{7:032x}-{span:016x}-01"} if span else None
    return pickle.loads(pickle.dumps(_Carrying.from_request(_Request(name, headers), 3)))  # noqa: S301


def test_steps_have_the_contexts_of_the_traced_requests_in_their_batch() -> None:
    """A request is linked in each step that it is scheduled in, from its first to its last."""
    traces = RequestTraces()
    first = _Schedule([sent("a", 1), sent("b"), sent("c", 3)], num_scheduled_tokens={"a": 9, "b": 9, "c": 9})
    assert traces.of_step(first) == (RequestLink(7, 1), RequestLink(7, 3))
    assert traces.of_step(_Schedule(num_scheduled_tokens={"b": 1, "c": 1})) == (RequestLink(7, 3),)
    assert traces.of_step(_Schedule(num_scheduled_tokens={"a": 1, "b": 1})) == (RequestLink(7, 1),)
    assert traces.of_step(_Schedule(finished_req_ids={"a", "b"})) == ()
    assert traces.of_step(_Schedule([sent("a", 4)], num_scheduled_tokens={"c": 1, "a": 2})) == ((7, 3), (7, 4))
    assert traces.of_step(_Schedule(finished_req_ids={"a", "c"}, num_scheduled_tokens={"a": 1})) == ()


def test_a_step_has_a_bounded_number_of_links() -> None:
    """A large batch does not write a record for each of its requests."""
    names = [f"r{number}" for number in range(100)]
    schedule = _Schedule(
        [sent(name, number + 1) for number, name in enumerate(names)], num_scheduled_tokens=dict.fromkeys(names, 1)
    )
    assert RequestTraces().of_step(schedule) == tuple((7, span) for span in range(1, 33))


def test_requests_of_an_unknown_shape_are_left_alone() -> None:
    """A request without headers is passed on as it is, and so are the other arguments."""
    made = _Carrying.from_request(_Request("x"), 3)
    assert vars(made) == {"req_id": "x"}
