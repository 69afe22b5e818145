"""Time that the machine takes from a rank: counted from the first sample, zero where the kernel does not say."""

from __future__ import annotations

import os

import pytest

from swtrace.trace.machine import MachineNoise


def test_the_machine_s_noise_is_counted_from_the_first_sample() -> None:
    """Samples are increments since the last one, starting with zero; after close they are zero."""
    noise = MachineNoise()
    assert noise.sample() == (0, 0)
    samples = [noise.sample() for _ in range(50)]
    assert all(delay >= 0 and steal >= 0 for delay, steal in samples)
    noise.close()
    assert noise.sample() == (0, 0)


def test_the_machine_s_noise_is_zero_where_the_kernel_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc files samples are zero and nothing is raised."""

    def refuse(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        noise = MachineNoise()
        assert noise.sample() == (0, 0)
        assert noise.sample() == (0, 0)


def test_run_delay_and_steal_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run delay is the second number of schedstat, steal the eighth of the first line of stat; both since last time."""
    lines = {"/proc/thread-self/schedstat": b"5 7000 1\n", "/proc/stat": b"cpu  1 2 3 4 5 6 7 100 9 10\ncpu0 1\n"}
    descriptors = {1000: "/proc/thread-self/schedstat", 1001: "/proc/stat"}
    monkeypatch.setattr(os, "open", lambda path, _flags: next(fd for fd, name in descriptors.items() if name == path))
    monkeypatch.setattr(os, "pread", lambda fd, _length, _offset: lines[descriptors[fd]])
    noise = MachineNoise()
    assert noise.sample() == (0, 0)
    lines["/proc/thread-self/schedstat"] = b"6 9500 1\n"
    lines["/proc/stat"] = b"cpu  1 2 3 4 5 6 7 103 9 10\n"
    assert noise.sample() == (2, 0)
    noise._next_steal_ns = 0
    lines["/proc/thread-self/schedstat"] = b"6 10000 1\n"
    assert noise.sample() == (1, 3 * 1_000_000 // os.sysconf("SC_CLK_TCK"))
