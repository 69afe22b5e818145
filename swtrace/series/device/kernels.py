"""The kernels that read a device's clock: one warp each, no barrier, 8 bytes at a time.

This module needs Triton, so it is imported only when stamps are requested. Words in host memory are read
past every cache and written through them, so that each side sees what the other wrote while a kernel
runs. ``%globaltimer`` counts ns since the epoch, in steps that differ from chip to chip.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit(do_not_specialize=["slot"])
def stamp(row: tl.tensor, slot: tl.tensor) -> None:
    """Write the device's time to a slot of a row."""
    tl.store(row + slot, globaltimer())


@triton.jit(do_not_specialize=["duration_ns"])
def spin(bounds: tl.tensor, duration_ns: tl.tensor) -> None:
    """Keep one warp busy for ``duration_ns``; write its first and its last reading."""
    began = globaltimer()
    now = began
    while now - began < duration_ns:
        now = globaltimer()
    tl.store(bounds, began)
    tl.store(bounds + 1, now)


@triton.jit(do_not_specialize=["count"])
def read_clock(readings: tl.tensor, count: tl.tensor) -> None:
    """Read the clock ``count`` times in a row, as fast as possible."""
    for index in range(count):
        tl.store(readings + index, globaltimer())


@triton.jit(do_not_specialize=["exchanges", "patience_ns"])
def answer(question: tl.tensor, answers: tl.tensor, exchanges: tl.tensor, patience_ns: tl.tensor) -> None:
    """Answer the host: write the device's time as the n-th answer once the n-th question is asked.

    Ends after ``exchanges`` answers. After ``patience_ns`` it stops waiting for the host: the answer
    to a question that was not asked in time is -1.
    """
    began = globaltimer()
    for number in range(exchanges):
        asked = tl.load(question, volatile=True)
        while (asked <= number) & (globaltimer() - began < patience_ns):
            asked = tl.load(question, volatile=True)
        now = globaltimer()
        tl.store(answers + number, tl.where(asked > number, now, -1), cache_modifier=".wt")
