"""The phase of a step follows from its schedule."""

from __future__ import annotations

from types import SimpleNamespace

from swtrace.vllm.steps import phase


def of(new: int, outputs: dict[str, int], resumed: tuple[str, ...] = ()) -> str:
    """Return the phase of a step with ``new`` requests, and with others that have so many output tokens."""
    cached = SimpleNamespace(
        req_ids=list(outputs), num_output_tokens=list(outputs.values()), resumed_req_ids={*resumed}
    )
    return phase(SimpleNamespace(scheduled_new_reqs=[None] * new, scheduled_cached_reqs=cached)).name


def test_phases_of_a_schedule() -> None:
    """A request works on its prompt until it has an output token, and again when it resumes."""
    phases = {
        "new": of(2, {}),
        "chunk of a prompt": of(0, {"a": 0}),
        "resumed": of(0, {"a": 5}, ("a",)),
        "generating": of(0, {"a": 1, "b": 7}),
        "new and generating": of(1, {"a": 1}),
        "chunk and generating": of(0, {"a": 0, "b": 1}),
        "resumed and generating": of(0, {"a": 3, "b": 1}, ("a",)),
    }
    assert phases == {
        "new": "PREFILL",
        "chunk of a prompt": "PREFILL",
        "resumed": "PREFILL",
        "generating": "DECODE",
        "new and generating": "MIXED",
        "chunk and generating": "MIXED",
        "resumed and generating": "MIXED",
    }
