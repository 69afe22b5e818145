"""What lies in memory: whose tensors there are in this process."""

from __future__ import annotations

import threading

from torch import nn

from swtrace.series.payload import living_modules

LOOKS = 5


def test_looking_for_modules_disturbs_no_other_thread() -> None:
    """Every living module is found, while other threads build tuples, which fails where somebody refers to them."""
    mine = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 2))
    stop = threading.Event()
    failures: list[BaseException] = []
    built = 0

    def build() -> None:
        nonlocal built
        try:
            while not stop.is_set():
                assert len(tuple(number for number in range(2000))) == 2000
                built += 1
        except BaseException as failure:  # noqa: BLE001 (it is what the test is about)
            failures.append(failure)

    builders = [threading.Thread(target=build) for _ in range(2)]
    for builder in builders:
        builder.start()
    try:
        for _ in range(LOOKS):
            found = {id(module) for module in living_modules()}
            assert found >= {id(module) for module in mine.modules()}
    finally:
        stop.set()
        for builder in builders:
            builder.join()
    assert not failures
    assert built
