"""Stands for a rank: ``python fake_rank.py STEPS [EXIT STATUS]`` writes a ring as a two-rank series would.

Group rank 1 of two, of which rank 0 is never seen. Odd layers are its own. Every wait for an even
layer is held up for 1 ms of a step of 10 ms.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from swtrace.trace.clocks import boot_id, now_ns
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import NO_WINDOW, Observed, Phase, TransferFlag

LAYERS = 4
MILLISECOND_NS = 1_000_000


def write(steps: int) -> None:
    """Write a ring as ``SWTRACE_DIR`` and ``SWTRACE_RUN_ID`` say, and close it."""
    identity = RankIdentity(
        os.environ["SWTRACE_RUN_ID"], 1, socket.gethostname(), boot_id(), os.getpid(), time.time_ns()
    )
    recorder = Recorder.create(Path(os.environ["SWTRACE_DIR"]), identity)
    series = recorder.add_series(
        SeriesInfo(
            name="self_attn.o_proj",
            start_layer=0,
            stack_layers=LAYERS,
            layers=tuple(range(LAYERS)),
            prefetch_step=1,
            windows="static",
            window_count=1,
            group_ranks=(0, 1),
            rank_in_group=1,
            transport="gloo",
            rendezvous="source",
            clock="host",
            layer_bytes=1 << 20,
            owned_layers=LAYERS // 2,
        )
    )
    for step in range(steps):
        begin_ns = now_ns() + step * 10 * MILLISECOND_NS
        for layer in range(LAYERS):
            own = layer % 2 == 1
            at_ns = begin_ns + layer * 2 * MILLISECOND_NS
            series.transfer(
                at_ns,
                0 if own else at_ns + MILLISECOND_NS,
                at_ns,
                at_ns if own else at_ns + MILLISECOND_NS,
                step,
                step * LAYERS + layer,
                layer,
                (layer - 1) % LAYERS,
                layer % 2,
                NO_WINDOW if own else 0,
                Observed.NEVER if own else Observed.CALLBACK,
                TransferFlag.OWN if own else TransferFlag(0),
            )
        end_ns = begin_ns + 10 * MILLISECOND_NS
        series.step(
            begin_ns=begin_ns,
            arrival_ns=begin_ns,
            end_ns=end_ns,
            step=step,
            tokens=1,
            requests=1,
            phase=Phase.DECODE,
            waits=LAYERS,
        )
    recorder.close()


if __name__ == "__main__":
    write(int(sys.argv[1]))
    sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
