"""Programs in a terminal of their own, as a person uses them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from tests.support.patience import patience


def read_until(descriptor: int, seen: Callable[[str], bool]) -> str:
    """Read what a terminal shows until it has been seen, or the program is gone."""
    shown, deadline = "", time.monotonic() + patience()
    while not seen(shown):
        assert time.monotonic() < deadline, shown[-3000:]
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                data = os.read(descriptor, 1 << 16)
            except OSError:  # the program closed its end
                break
            shown += data.decode(errors="replace")
    return shown
