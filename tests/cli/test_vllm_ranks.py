"""How long ranks of vLLM are waited for: by what they do, not by the clock alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from swtrace.cli import vllm_ranks
from swtrace.cli.vllm_ranks import Patience, family

Over = Callable[[float, float], bool]


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Over:
    """Return whether a patience of 60 idle seconds is over at an instant, when so much processor time is used."""
    now = {"s": 0.0, "busy": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["s"])
    monkeypatch.setattr(vllm_ranks, "_processor_seconds", lambda _pid: now["busy"])
    patience = Patience(60.0, lambda: [1])

    def look(second: float, busy: float) -> bool:
        now.update(s=second, busy=busy)
        return patience.over()

    return look


def test_busy_ranks_are_waited_for(over: Over) -> None:
    """Ranks that get on are not given up when their idle time would be over, and then are when they rest."""
    assert not any(over(second, second / 10) for second in range(0, 200, 2))
    assert not over(250.0, 19.8)
    assert over(270.0, 19.8)


def test_resting_ranks_are_given_up(over: Over) -> None:
    """Ranks that wait for each other look at the clock now and then: that is not getting on."""
    assert not any(over(second, second / 1000) for second in range(0, 60, 2))
    assert over(62.0, 0.062)


def test_spinning_ranks_are_given_up_in_the_end(over: Over) -> None:
    """Ten times the patience is too long, whatever they do."""
    assert not over(599.0, 599.0)
    assert over(601.0, 601.0)


def test_children_are_looked_at() -> None:
    """The workers that a rank starts belong to it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            assert {os.getpid(), child.pid} <= family(os.getpid())
        finally:
            child.kill()
