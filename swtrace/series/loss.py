"""Saying who died. Runs once, when nothing is urgent any more."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from swtrace.series.layer import SeriesLayer
    from swtrace.trace.recorder import Recorder

PATIENCE_S = 1.0
"""A dying process closes its sockets and its ring one after the other; so look for this long."""


def describe_loss(
    where: str,
    ranks: Sequence[int],
    layer: SeriesLayer | None,
    error: RuntimeError,
    recorder: Recorder | None,
    *,
    untraced: Collection[int] = (),
) -> str:
    """Return what happened, on which layer, and which ranks are known to be dead: of the untraced, nothing is."""
    if layer is None:
        what = f"{where}: the group could not agree"
    elif layer.owned:
        what = f"{where}, layer {layer.layer_idx}: could not be sent"
    else:
        what = f"{where}, layer {layer.layer_idx}: did not come from rank {ranks[layer.source]}, its source"
    reason = str(error).strip().partition("\n")[0]
    if re.search(r"time(d )?out", reason, re.IGNORECASE):
        reason = f"{reason}; SWTRACE_TIMEOUT sets how long a rank waits for a peer"
    return f"{what}{_dead(ranks, recorder, untraced)}: {reason}"


def _dead(ranks: Sequence[int], recorder: Recorder | None, untraced: Collection[int]) -> str:
    if recorder is None:
        return ""
    from swtrace.trace.liveness import dead_ranks

    deadline = time.monotonic() + PATIENCE_S
    while True:
        dead = sorted(who.rank for who in dead_ranks(recorder.path.parent, recorder.identity.run_id))
        mine = [rank for rank in dead if rank in ranks]
        if mine or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not mine and untraced:
        numbers = ", ".join(map(str, sorted(untraced)))
        return f" (whether rank {numbers}, which runs untraced, is alive is not known; all others are)"
    if not mine:
        return " (all ranks' rings are still held by their writers)"
    return f" (rank{'s' if len(mine) > 1 else ''} {', '.join(map(str, mine))} died)"
