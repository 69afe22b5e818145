"""Calls that the engine's core refuses while weights are shared, and calls that it passes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swtrace.errors import RefusedError
from swtrace.vllm.engine import FORBIDDEN, RPC, guarded


class Core:
    """The part of vLLM's engine core that the guard uses."""

    def __init__(self, *shared: list[str]) -> None:
        self.called: list[str] = []
        self.model_executor = SimpleNamespace(collective_rpc=lambda _function: [*shared])

    def call(self, *args: Any, **kwargs: Any) -> str:
        """Stand in for any method of the core."""
        self.called.append(f"{args} {kwargs}")
        return "done"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_calls_by_name_and_by_rpc_are_refused(name: str) -> None:
    """If one worker shares, each forbidden call is refused before it begins, however it is made."""
    core = Core([], ["self_attn.o_proj"])
    said = f"{name}: the weights of self_attn.o_proj are shared between ranks"
    ways: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        (name, (), {}),
        (RPC, (name, None, (1,)), {}),
        (RPC, (), {"timeout": 1.0, "method": name}),
    ]
    for way, args, kwargs in ways:
        with pytest.raises(RefusedError, match=said):
            guarded(way, Core.call)(core, *args, **kwargs)
    assert core.called == []


def test_other_calls_go_through() -> None:
    """A pause without sleep, another method of the worker and a function do not touch the weights."""
    core = Core(["self_attn.o_proj"])
    assert guarded("sleep", Core.call)(core, 0) == "done"
    assert guarded("sleep", Core.call)(core, mode="abort", level=0) == "done"
    assert guarded(RPC, Core.call)(core, "check_health") == "done"
    assert guarded(RPC, Core.call)(core, Core) == "done"
    with pytest.raises(RefusedError):
        guarded("sleep", Core.call)(core, mode="abort")


def test_nothing_is_refused_where_nothing_is_shared() -> None:
    """Without series, the call reaches vLLM unchanged."""
    core = Core([], [])
    assert guarded("sleep", Core.call)(core, 1, mode="wait") == "done"
    assert core.called == ["(1,) {'mode': 'wait'}"]
