"""A machine that takes no time from a thread, for steps that a simulated device's clock times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from swtrace.trace.machine import MachineNoise


@contextmanager
def quiet_machine() -> Iterator[None]:
    """Record no run delay and no steal. The real ones would be compared with simulated durations."""
    with patch.object(MachineNoise, "sample", lambda _noise: (0, 0)):
        yield
