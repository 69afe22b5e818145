"""Names the rank that died, after an error in a collective. Runs once, when time no longer matters."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from swtrace.units import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from swtrace.series.layer import SeriesLayer
    from swtrace.trace.recorder import Recorder

PATIENCE_S = 3.0
"""How long to look for the dead rank, because a dying process does not close its sockets and its ring at once. The
series has ended anyway, so waiting costs nothing."""

_COLLECTIVE_WORDS = re.compile(r"gloo|nccl|connection|socket|store|peer|time(d )?out", re.IGNORECASE)
"""Words in errors that a peer's death may have caused. For all other errors the peers are not checked."""


def describe_loss(
    where: str,
    ranks: Sequence[int],
    layer: SeriesLayer | None,
    error: RuntimeError,
    recorder: Recorder | None,
    *,
    untraced: Collection[int] = (),
) -> str:
    """Return what happened, on which layer, and which ranks are known to be dead; ``untraced`` ranks never are."""
    if layer is None:
        what = f"{where}: the ranks could not agree"
    elif layer.owned:
        what = f"{where}, layer {layer.layer_idx}: its broadcast could not be sent"
    else:
        what = f"{where}, layer {layer.layer_idx}: did not arrive from rank {ranks[layer.source]}, its source"
    dead = _dead(ranks, recorder)
    if dead:
        what += f" ({dead} died)"
    elif recorder is not None and untraced:
        runs = f"{listed('rank', sorted(untraced))} run{'s' if len(untraced) == 1 else ''}"
        what += f" ({runs} untraced and may have died; no other rank on this host has)"
    elif recorder is not None:
        what += " (no rank on this host is known to have died)"
    return f"{what}: {reason(error)}"


def describe_death(
    where: str, ranks: Sequence[int], layer_idx: int, error: RuntimeError, recorder: Recorder | None
) -> str:
    """Return which ranks died while this one was in another collective than the series'; empty if none is known.

    ``error`` is the collective's error, ``layer_idx`` the layer that the forward had reached.
    """
    if recorder is None or not _COLLECTIVE_WORDS.search(f"{type(error).__name__} {error}"):
        return ""
    dead = _dead(ranks, recorder)
    return dead and f"{where}, layer {layer_idx}: {dead} died; this rank was in another collective: {reason(error)}"


def reason(error: RuntimeError) -> str:
    """Return the first line of a collective's error, and which setting changes how long it waits."""
    line = str(error).strip().partition("\n")[0]
    if re.search(r"time(d )?out", line, re.IGNORECASE) and "SWTRACE_TIMEOUT" not in line:
        line = f"{line}; SWTRACE_TIMEOUT sets how long a rank waits for a peer"
    return line


def _dead(ranks: Sequence[int], recorder: Recorder | None) -> str:
    """Return the dead ranks among ``ranks`` in words; empty if none is known."""
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
    return listed("rank", mine) if mine else ""
